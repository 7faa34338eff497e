"""A coordinator's core with nodes that it has heard."""

from __future__ import annotations

import itertools
import random
from functools import partial

from coordinator.config import CoordinatorConfig
from coordinator.core.core import CoordinatorCore
from coordinator.core.instructions import Instruction
from protocol.ids import Node
from protocol.messages import Load
from tests.support.coordinator.nodes import heartbeat

ME = "tcp://me:1"


def core_of(*names: str, **settings: object) -> CoordinatorCore:
    """With live nodes; names that begin with p are prefill nodes. Unless `settings` name another
    policy, each keeps to its role."""
    ids = map(str, itertools.count(1))
    chance = partial(random.Random.random, random.Random(0))
    config = CoordinatorConfig(**({"policy": "disaggregate"} | settings))  # type: ignore[arg-type]
    core = CoordinatorCore(config, ME, chance, lambda: next(ids))
    for name in names:
        hear(core, name, 0.0)
    return core


def hear(
    core: CoordinatorCore,
    name: str,
    now: float,
    load: Load | None = None,
    incarnation: int = 1,
) -> list[Instruction]:
    role = "prefill" if name.startswith("p") else "decode"
    return core.handle(heartbeat(role, Node(name, incarnation), load), now)  # type: ignore[arg-type]
