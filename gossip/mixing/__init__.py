"""Strategies of decentralized averaging: values that compose, for one peer with messages and for all peers at once.

`gossip.mixing.strategy` says what a strategy is asked, and in which order; `gossip.mixing.rounds` runs one with
messages in lock-step; `gossip.mixing.bad` holds what should not be used.
"""

from gossip.mixing.averaging import ClippedGossip, CombineThenAdapt, DPsgd, EpidemicLearning
from gossip.mixing.choco import Choco
from gossip.mixing.compose import Compressed, Every
from gossip.mixing.outer import DiLoCo, NoLoCo
from gossip.mixing.pairwise import PairwiseExchange
from gossip.mixing.push_sum import PushSum
from gossip.mixing.relay import RelaySum
from gossip.mixing.strategy import Exchange, Outbox, Packet, Strategy
from gossip.mixing.tracking import GradientTracking

__all__ = [
    "Choco",
    "ClippedGossip",
    "CombineThenAdapt",
    "Compressed",
    "DPsgd",
    "DiLoCo",
    "EpidemicLearning",
    "Every",
    "Exchange",
    "GradientTracking",
    "NoLoCo",
    "Outbox",
    "Packet",
    "PairwiseExchange",
    "PushSum",
    "RelaySum",
    "Strategy",
]
