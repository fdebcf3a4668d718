"""What runs in the processes of the tasks: user code, the differences it makes, and their way to the agent."""
