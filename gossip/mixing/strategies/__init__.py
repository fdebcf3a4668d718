"""Strategies of decentralized averaging that the literature knows; `bad` has some that only seem to average."""
