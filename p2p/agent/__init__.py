"""What runs in the process beside the tasks of an executor, the agent, and how others start it and speak to it."""
