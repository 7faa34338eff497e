"""Routing policies choose among the candidates. Pure; one contract suite holds for all of them.

A policy is asked twice for a request: for the node that computes its prompt, and for the one that
answers it. To add one, write a class with `choose` and name it in `POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from coordinator.routing.cost import Cost
from coordinator.routing.registry import LiveNode
from protocol.ids import Role

TIE_S = 0.001
"""Scores closer than this are equal: estimates are no better."""
NEAR_TIE_SHARE = 0.05
"""Rates that equal nodes measure differ by so much."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One node for one of the two tasks, with what it would cost there."""

    live: LiveNode
    cost: Cost
    score: float
    """`cost.score`, which is asked for many times."""
    owned_pages: int
    """Leading pages of the prompt that it has, or will have when the request gets there."""
    num_requests: int
    """Unfinished requests there, as far as is known."""
    work_s: float
    """Work ever sent there by this coordinator."""
    fetch_from: LiveNode | None = None
    fetch_pages: int = 0
    """Leading pages that it would have after fetching."""

    @property
    def cached_pages(self) -> int:
        """Leading pages that need no computing there."""
        return max(self.owned_pages, self.fetch_pages)


class Policy(Protocol):
    """Chooses among at least one candidate."""

    weighs_cost: bool
    """Compares costs over tasks too: decode nodes may compute prompts, pages may be fetched."""
    binds_late: bool
    """Requests wait at the coordinator until a node is nearly free."""

    def choose(self, candidates: Sequence[Candidate], task: Role) -> Candidate: ...


class CheapestRoute:
    """Takes the least estimated cost.

    Among equals an owner wins: the node that has most of the prompt itself, so that pages are not
    copied for nothing. Then the one that was given least work so far, so that several coordinators
    do not run to the same idle node; then chance decides.
    """

    weighs_cost = True
    binds_late = True

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance

    def choose(self, candidates: Sequence[Candidate], task: Role) -> Candidate:
        if len(candidates) == 1:
            return candidates[0]
        best = min(candidates, key=_score)
        if best.fetch_from is not None:
            best = _owner_instead(candidates, best)
        limit = best.score + TIE_S
        equals = [candidate for candidate in candidates if candidate.score <= limit]
        most_owned = max(candidate.owned_pages for candidate in equals)
        equals = [candidate for candidate in equals if candidate.owned_pages == most_owned]
        least = min(candidate.work_s for candidate in equals)
        return _any([c for c in equals if c.work_s == least], self._chance)


def _owner_instead(candidates: Sequence[Candidate], fetching: Candidate) -> Candidate:
    """Returns the best of those that have what `fetching` would fetch and cost nearly the same;
    `fetching` itself if there is none."""
    limit = fetching.score * (1 + NEAR_TIE_SHARE) + TIE_S
    owners = [
        candidate
        for candidate in candidates
        if candidate.owned_pages >= fetching.fetch_pages and candidate.score <= limit
    ]
    return min(owners, key=_score, default=fetching)


def _score(candidate: Candidate) -> float:
    return candidate.score


class RoundRobin:
    """Each node in turn, whatever it has or does."""

    weighs_cost = False
    binds_late = False

    def __init__(self, chance: Callable[[], float]) -> None:
        self._turns: dict[Role, int] = {"prefill": 0, "decode": 0}

    def choose(self, candidates: Sequence[Candidate], task: Role) -> Candidate:
        turn = self._turns[task]
        self._turns[task] = turn + 1
        return candidates[turn % len(candidates)]


class LeastLoaded:
    """The shortest queue for prompts, the fewest requests for answers; by chance among equals."""

    weighs_cost = False
    binds_late = False

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance

    def choose(self, candidates: Sequence[Candidate], task: Role) -> Candidate:
        loads = [(c.cost.queue_s, c.num_requests) for c in candidates]
        least = min(loads)
        equals = [c for c, load in zip(candidates, loads, strict=True) if load == least]
        return _any(equals, self._chance)


class LongestPrefix:
    """The node that has most of the prompt; among equals the one with the shortest queue."""

    weighs_cost = False
    binds_late = False

    def __init__(self, chance: Callable[[], float]) -> None:
        self._least_loaded = LeastLoaded(chance)

    def choose(self, candidates: Sequence[Candidate], task: Role) -> Candidate:
        longest = max(c.owned_pages for c in candidates)
        equals = [c for c in candidates if c.owned_pages == longest]
        return self._least_loaded.choose(equals, task)


POLICIES: dict[str, Callable[[Callable[[], float]], Policy]] = {
    "cost": CheapestRoute,
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "longest-prefix": LongestPrefix,
}


def _any(candidates: Sequence[Candidate], chance: Callable[[], float]) -> Candidate:
    return candidates[int(chance() * len(candidates))] if len(candidates) > 1 else candidates[0]
