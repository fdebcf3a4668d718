"""Checkpoints: the model and the units of work that count in it, of one moment of a training, on disk or by URL."""
