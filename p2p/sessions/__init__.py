"""In what order a training happens: with agents that replicate, with agents that mix, or on virtual time."""
