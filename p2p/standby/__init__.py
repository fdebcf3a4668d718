"""A master that may die: a group of masters that hold the same updates in the same order, one of which leads."""
