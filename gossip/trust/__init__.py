"""Whom a peer trusts: how long the updates of others are, and who broke the protocol. Statistics and counts only."""
