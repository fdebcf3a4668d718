"""The command line: `deepdist doctor`, `simulate`, `soak` and `lab`."""
