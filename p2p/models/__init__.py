"""Models that are ready to train: each package holds the gradient of one sort of model, and the functions that prepare
its data.

A gradient takes a private replica and rows and returns an update: named arrays, to be added to the model's. Any
function of that shape will do; those here are imported by name, each from the package of its model.
"""
