"""The parts of the driver program while peers train: the registrar, its own agent, and watchers."""
