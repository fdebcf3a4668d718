"""Models that are ready to train: each module holds the gradient of one kind of model, and what prepares its data.

A gradient takes a private replica and rows and returns an update: named arrays, to be added to the model's. Any
function of that shape will do; those here are imported by name, each from the package of its model.
"""
