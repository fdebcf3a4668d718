"""Sessions: the order in which a training happens, with agents that replicate or mix, or on virtual time."""
