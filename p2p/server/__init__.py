"""Between a worker and the master: what they say, and the memory in which models and updates pass, on one host."""
