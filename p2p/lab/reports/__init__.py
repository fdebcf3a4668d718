"""What the laboratory says of its results: a page with plots."""
