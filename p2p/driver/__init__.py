"""What runs in the driver program while peers train: who is where, its own agent, a master, and those who watch."""
