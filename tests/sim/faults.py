"""Faults as data: what goes wrong in a life, when, and for how long. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Crash:
    """A process is killed; a new incarnation starts after `back_after_s`."""

    process: str
    at: float
    back_after_s: float


@dataclass(frozen=True)
class Leave:
    """A node is told to stop, and finishes what it does first; a new incarnation starts
    `back_after_s` after its end."""

    process: str
    at: float
    back_after_s: float


@dataclass(frozen=True)
class Replace:
    """A new incarnation of a node starts while the old one goes on, or is frozen for a while."""

    process: str
    at: float
    for_s: float


@dataclass(frozen=True)
class Freeze:
    """A process does nothing for a while, and then goes on as if nothing had been."""

    process: str
    at: float
    for_s: float


@dataclass(frozen=True)
class Cut:
    """Two processes cannot reach each other; what they say is lost, or waits."""

    one: str
    other: str
    at: float
    for_s: float
    loses: bool


@dataclass(frozen=True)
class Slow:
    """Everything between two processes takes longer."""

    one: str
    other: str
    at: float
    for_s: float
    delay_s: float


@dataclass(frozen=True)
class RedisGone:
    """Redis does not answer for a while; `comes_back_empty`: it has lost everything then."""

    at: float
    for_s: float
    comes_back_empty: bool


@dataclass(frozen=True)
class RedisSlow:
    """Every call to Redis takes `delay_s`."""

    at: float
    for_s: float
    delay_s: float


@dataclass(frozen=True)
class Flush:
    """An operator has a node forget its cache."""

    process: str
    at: float


Fault = Crash | Leave | Replace | Freeze | Cut | Slow | RedisGone | RedisSlow | Flush


def some_leaves(chance: random.Random, nodes: list[str], until: float) -> list[Fault]:
    """Returns 1 to 4 nodes that are told to stop, in order; some of them twice."""
    leaves = [
        Leave(chance.choice(nodes), round(chance.uniform(0.05, until), 3), chance.choice((0.1, 1)))
        for _ in range(chance.randint(1, 4))
    ]
    return sorted(leaves, key=lambda leave: leave.at)


def some_faults(
    chance: random.Random, nodes: list[str], coordinators: list[str], until: float
) -> list[Fault]:
    """Returns 1 to 6 faults that begin before `until`, in order."""
    processes = nodes + coordinators
    faults: list[Fault] = []
    for _ in range(chance.randint(1, 6)):
        at = round(chance.uniform(0.05, until), 3)
        for_s = round(chance.choice((0.1, 0.1, 0.5, 1.5, 4.0)) * chance.uniform(0.5, 1.5), 3)
        one, other = chance.sample(processes, 2)
        faults.append(
            chance.choice(
                [
                    Crash(chance.choice(nodes), at, for_s),
                    Crash(chance.choice(nodes), at, for_s),
                    Crash(one, at, for_s),
                    Freeze(one, at, for_s),
                    Replace(chance.choice(nodes), at, for_s),
                    Cut(one, other, at, for_s, loses=chance.random() < 0.5),
                    Cut(one, other, at, for_s, loses=True),
                    Slow(one, other, at, for_s, round(chance.uniform(0.02, 0.5), 3)),
                    RedisGone(at, for_s, comes_back_empty=chance.random() < 0.5),
                    RedisSlow(at, for_s, round(chance.uniform(0.05, 0.8), 3)),
                    Flush(chance.choice(nodes), at),
                ]
            )
        )
    return sorted(faults, key=lambda fault: fault.at)
