"""Programs that measure: each prints one table, run as `python -m benchmarks.<name>`.

`--quick` is a smaller setting of the same thing, `--json FILE` writes the figures, and `--check` holds them against the
targets at the top of the program and exits 1 if one is missed.
"""
