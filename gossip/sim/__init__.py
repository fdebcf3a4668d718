"""Virtual time: peers under faults (`simulator`, `proving_ground`), or all of them at once in rounds (`vectorized`)."""
