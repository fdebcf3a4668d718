"""Which session stands behind a `DeepDist`.

a discipline that mixes       MixSession
a simulated cluster           SimulatedSession
mode="master"                 MasterSession
mode="sync"                   SteppingSession
mode="averaging"              AveragingSession
anything else                 AgentSession
"""

from __future__ import annotations

from typing import Any

from gossip.trust.norms import NormMax
from p2p import engines
from p2p.adapters.model import Model
from p2p.sessions.agents import AgentSession, Session
from p2p.sessions.cluster import SimulatedCluster
from p2p.sessions.master import ALONE, MasterSession
from p2p.sessions.simulated import SimulatedSession
from p2p.sessions.synchronous import AveragingSession, SteppingSession
from p2p.standby.launch import Followed

WITH_MASTER: dict[str, type[MasterSession]] = {
    session.mode: session for session in (MasterSession, SteppingSession, AveragingSession)
}


def session_of(
    model: Model,
    mode: str,
    mix: Any,
    *,
    engine: SimulatedCluster | engines.Engine | None,
    peers: int | None,
    seed: int,
    drain_timeout_s: float,
    followed: Followed = ALONE,
    update_norm_max: NormMax = None,
    before: Session | None = None,
) -> Session:
    """`mix`: strategy and topology as `p2p.arguments.mixed` gives them, or None. All has been checked.

    `before` is a session with or without a master that has trained the same model, and is over. What it has begun goes
    on: epochs are counted on, and a checkpoint that was resumed is.
    """
    if isinstance(engine, SimulatedCluster):
        return SimulatedSession(engine, model, seed, drain_timeout_s, update_norm_max)
    if mix is not None:
        from p2p.sessions.mixing import MixSession

        return MixSession(model, *mix, peers=peers, engine=engine, seed=seed, drain_timeout_s=drain_timeout_s)
    epochs = before.epochs if isinstance(before, AgentSession | MasterSession) else 0
    session: AgentSession | MasterSession
    if mode in WITH_MASTER:
        if mode != "master":
            followed = ALONE  # where workers take steps together, no other master could go on
        session = WITH_MASTER[mode](
            model,
            peers=peers,
            engine=engine,
            seed=seed,
            epochs=epochs,
            followed=followed,
        )
    else:
        session = AgentSession(
            model,
            peers=peers,
            engine=engine,
            seed=seed,
            drain_timeout_s=drain_timeout_s,
            epochs=epochs,
            update_norm_max=update_norm_max,
        )
    session.begun = None if before is None else before.begun
    return session
