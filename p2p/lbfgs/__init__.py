"""L-BFGS over workers and shards: full gradients from portions of the data, and the recursion where the vectors are."""
