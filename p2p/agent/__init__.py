"""The agent, the process beside the tasks of an executor, and how other processes start it and speak to it."""
