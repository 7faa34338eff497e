"""`Fault`: one thing that breaks while clients stream; `plan_of` draws many of a seed. Pure.

Knows neither processes nor networks: `victims.py` does what is planned here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FaultKind = Literal[
    "kill node",
    "kill host",
    "stop node",
    "cut link",
    "stop redis",
    "restart redis",
    "kill coordinator",
]
"""A killed node has a companion that tells of its end at once; of a killed host nobody tells. A
stopped process goes on after a while, and so does a link that was cut."""
KINDS: tuple[FaultKind, ...] = (
    "kill node",
    "kill host",
    "stop node",
    "cut link",
    "stop redis",
    "restart redis",
    "kill coordinator",
)
FAULTS_OF_NODES = ("kill node", "kill host", "stop node", "cut link")
SHORTEST_S, LONGEST_S = 3.0, 10.0
"""For how long a process is stopped or a link is cut."""
RETURNS_WITHIN_S = 6.0
"""After so long a node serves again that was started again, or goes on."""


@dataclass(frozen=True)
class Fault:
    """One thing that breaks."""

    at_s: float
    """Seconds after the first stream."""
    kind: FaultKind
    victim: str
    """The name of the process that it strikes."""
    for_s: float = 0.0
    """How long a stopped process or a cut link stays so."""

    def __str__(self) -> str:
        lasting = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.at_s:5.1f} s  {self.kind}: {self.victim}{lasting}"


def plan_of(
    seed: int,
    seconds: float,
    every_s: float,
    nodes: Sequence[str],
    coordinators: Sequence[str],
) -> tuple[Fault, ...]:
    """Returns a fault every `every_s` seconds, the same ones for the same arguments. Each kind
    comes once before any comes twice. One decode node, whose names begin with d, is always left,
    and one coordinator."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    away_until = dict.fromkeys([*nodes, "redis", *coordinators], 0.0)
    deck: list[FaultKind] = []
    for number in range(1, int(seconds / every_s) + 1):
        at_s = number * every_s
        if at_s >= seconds:
            break
        deck = deck or chance.sample(KINDS, len(KINDS))
        kind = deck.pop()
        for_s = round(chance.uniform(SHORTEST_S, LONGEST_S), 1)
        if kind not in ("stop node", "cut link", "stop redis"):
            for_s = 0.0
        there = [name for name, until_s in away_until.items() if until_s <= at_s]
        candidates = _candidates(kind, there, nodes, coordinators)
        if not candidates:
            continue
        victim = chance.choice(candidates)
        away_until[victim] = at_s + for_s + RETURNS_WITHIN_S
        faults.append(Fault(at_s, kind, victim, for_s))
    return tuple(faults)


def _candidates(
    kind: FaultKind, there: Sequence[str], nodes: Sequence[str], coordinators: Sequence[str]
) -> list[str]:
    """Returns whom of the processes that are `there` a fault may strike."""
    if kind in ("stop redis", "restart redis"):
        return [name for name in there if name == "redis"]
    if kind == "kill coordinator":
        living = [name for name in there if name in coordinators]
        return living if len(living) > 1 else []
    living = [name for name in there if name in nodes]
    decode = [name for name in living if name.startswith("d")]
    return [name for name in living if name not in decode or len(decode) > 1]
