"""A peer-to-peer decentralized trainer: every executor keeps a replica, peers tell each other what they learnt.

with DeepDist(model) as dd:
    dd.train(rdd, gradient, descent)
"""

from gossip.errors import UsageError
from p2p.caution import DeepDistWarning
from p2p.deepdist import DeepDist
from p2p.report import Report

__all__ = ["DeepDist", "DeepDistWarning", "Report", "UsageError"]
