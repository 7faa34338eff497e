"""`ChangePlanner`: which node joins, is killed, or stops and comes back next. Pure."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from protocol.ids import Role

ChangeKind = Literal["join", "kill", "rejoin"]
"""join: a node with a new name. kill: SIGKILL. rejoin: a node is asked to stop, and is started
again under its name when it has ended."""
TURNS: tuple[ChangeKind, ...] = ("join", "kill", "join", "kill", "rejoin")
"""As many join as are killed, so that the cluster keeps its size."""
ROLES: tuple[Role, ...] = ("prefill", "decode")


@dataclass(frozen=True)
class Change:
    """One thing that happens to one node."""

    kind: ChangeKind
    node: str
    role: Role


class ChangePlanner:
    """Draws one change after the other. The same seed draws the same ones, as long as the same
    nodes serve."""

    def __init__(self, seed: int, num_prefill: int, num_decode: int) -> None:
        """The first nodes are named p0, p1, …, and d0, d1, …; those that join count on."""
        self._chance = random.Random(seed)
        self._turns = itertools.cycle(TURNS)
        self._joining = itertools.cycle(ROLES)
        self._num_named: dict[Role, int] = {"prefill": num_prefill, "decode": num_decode}

    def next(self, serving: Mapping[str, Role]) -> Change:
        """Returns the next change. `serving` are the nodes that serve now, with their roles. The
        last node of a role is never struck: a new one joins instead."""
        kind = next(self._turns)
        num_of_role = Counter(serving.values())
        victims = [name for name, role in sorted(serving.items()) if num_of_role[role] > 1]
        if kind == "join" or not victims:
            return self._join()
        victim = self._chance.choice(victims)
        return Change(kind, victim, serving[victim])

    def _join(self) -> Change:
        role = next(self._joining)
        number = self._num_named[role]
        self._num_named[role] += 1
        return Change("join", f"{role[0]}{number}", role)
