"""Strategies of decentralized averaging: values that compose, for one peer with messages and for all peers at once.

`gossip.mixing.strategy` has the methods of a strategy, and the order in which they are called. `gossip.mixing.rounds`
runs a strategy with messages in lock-step; `gossip.mixing.strategies.bad` holds strategies that should not be used.
"""

from gossip.mixing.strategies.averaging import ClippedGossip, CombineThenAdapt, DPsgd, EpidemicLearning
from gossip.mixing.strategies.choco import Choco
from gossip.mixing.strategies.compose import Compressed, Every
from gossip.mixing.strategies.outer import DiLoCo, NoLoCo
from gossip.mixing.strategies.pairwise import PairwiseExchange
from gossip.mixing.strategies.push_sum import PushSum
from gossip.mixing.strategies.relay import RelaySum
from gossip.mixing.strategies.tracking import GradientTracking
from gossip.mixing.strategy import Exchange, Outbox, Packet, Strategy

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
