"""Oracles: the promises that each peer of a simulated swarm must keep after each event, whatever the network does.

Oracles look from outside, at all peers at once. So they see a mistake when it is made, and not only when it does harm;
most mistakes are mended before. Each oracle is one promise, with the memory that it needs to tell whether one peer
keeps it; `table` has them all, and calls them.
"""
