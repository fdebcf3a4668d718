"""What must hold of each peer of a simulated swarm after each event, whatever the network does.

These look from outside, at all peers at once, and so see a mistake when it is made and not when it has come to harm,
which most are mended before. Each oracle is one promise, with what it must remember to tell whether one peer keeps it;
`table` has them all, and calls them.
"""
