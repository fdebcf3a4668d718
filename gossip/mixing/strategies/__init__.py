"""Strategies of decentralized averaging that the literature knows; `bad` are those that seem to be and are not."""
