"""The method of L-BFGS, pure: settings, directions, line searches, and when to end."""
