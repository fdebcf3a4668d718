"""The master, wherever it runs: it serves the model to workers, and has `descent` take their updates."""
