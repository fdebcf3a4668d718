"""Updates: how what was learned travels, is kept, summed and added to a model."""
