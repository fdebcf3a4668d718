"""Reports of the laboratory on its results: a page with plots."""
