"""The worker, the process of the tasks: user code, the differences that it makes, and their way to the agent."""
