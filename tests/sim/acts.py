"""What clients and operators do to requests of a life that run: they abort one, or pause all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.messages import PauseMode
from tests.sim.clients import Asked


@dataclass(frozen=True)
class Abort:
    """A client asks any coordinator to end a request, whoever has it."""

    asked: Asked
    at: float


@dataclass(frozen=True)
class PauseAll:
    """An operator lets nobody generate for a while."""

    mode: PauseMode
    at: float
    for_s: float


Act = Abort | PauseAll


def some_acts(chance: random.Random, requests: Sequence[Asked]) -> list[Act]:
    """Returns what is done in a life; nothing in most lives."""
    acts: list[Act] = []
    if chance.random() < 0.2:
        for asked in chance.sample(list(requests), 8):
            acts.append(Abort(asked, asked.at + chance.choice((0.0, 0.01, 0.03, 0.1, 0.4))))
    if chance.random() < 0.15:
        at = chance.uniform(0.02, 2.0)
        for _ in range(chance.choice((1, 1, 2))):
            mode: PauseMode = chance.choice(("retract", "retract", "in_place", "abort"))
            for_s = chance.uniform(0.01, 1.5)
            acts.append(PauseAll(mode, at, for_s))
            at += for_s * chance.choice((0.5, 1.5))
    return acts
