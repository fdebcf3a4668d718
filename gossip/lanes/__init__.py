"""Replication: every update of every peer in every replica, exactly once.

A peer keeps a lane of its own updates and reads the lanes of all others (`replicate`). One that joins late takes over
another one's replica (`adopt`). `peer` is the state machine that does both.
"""
