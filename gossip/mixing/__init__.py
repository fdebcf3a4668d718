"""Strategies of decentralized averaging: values that compose, for one peer with messages and for all peers at once.

`gossip.mixing.strategy` says what a strategy is asked, and in which order.
"""

from gossip.mixing.averaging import ClippedGossip, CombineThenAdapt, DPsgd, EpidemicLearning
from gossip.mixing.pairwise import PairwiseExchange
from gossip.mixing.push_sum import PushSum
from gossip.mixing.strategy import Exchange, Outbox, Packet, Strategy

__all__ = [
    "ClippedGossip",
    "CombineThenAdapt",
    "DPsgd",
    "EpidemicLearning",
    "Exchange",
    "Outbox",
    "Packet",
    "PairwiseExchange",
    "PushSum",
    "Strategy",
]
