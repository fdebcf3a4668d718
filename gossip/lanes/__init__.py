"""Replication: every update of every peer in every replica, exactly once.

A peer keeps a lane of its own updates and reads the lanes of all others (`replicate`). A peer that joins late adopts
the replica of another one (`adopt`). `peer` is the state machine that does both.
"""
