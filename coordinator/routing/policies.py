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
    """A node that could do one of the two tasks of a request, with what that would cost."""

    live: LiveNode
    cost: Cost
    score: float
    """The value of `cost.score`, which is needed many times."""
    owned_pages: int
    """How many leading pages of the prompt the node has, or will have when the request gets
    there."""
    num_requests: int
    """How many unfinished requests the node has, as far as is known."""
    work_s: float
    """All work that this coordinator ever sent there."""
    fetch_from: LiveNode | None = None
    fetch_pages: int = 0
    """How many leading pages the node would have after fetching."""

    @property
    def cached_pages(self) -> int:
        """How many leading pages need no computing on this node."""
        return max(self.owned_pages, self.fetch_pages)


class Policy(Protocol):
    """Chooses among at least one candidate."""

    weighs_cost: bool
    """True if it compares costs, so that pages may be fetched."""
    mixes_work: bool
    """True if a role is only a preference to it: decode nodes may compute prompts, and prefill
    nodes may answer while the decode nodes are full. Otherwise each does the work of the other only
    when there is no other."""
    binds_late: bool
    """True if requests wait at the coordinator until a node is nearly free."""

    def choose(self, candidates: Sequence[Candidate], task: Role) -> Candidate:
        """Returns one of `candidates`, of which there is at least one, to do `task`."""


class CheapestRoute:
    """Chooses the candidate with the least estimated cost.

    Among equals an owner wins: the node that has most of the prompt itself, so that pages are not
    copied for nothing. Then the one that was given least work so far, so that several coordinators
    do not all turn to the same idle node; then chance decides.
    """

    weighs_cost = True
    mixes_work = True
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


class Disaggregate(CheapestRoute):
    """Chooses the candidate with the least estimated cost, and leaves each node to its role: no
    prompt is computed beside answers as long as there is a prefill node."""

    mixes_work = False


def _owner_instead(candidates: Sequence[Candidate], fetching: Candidate) -> Candidate:
    """Returns the best of the candidates that have what `fetching` would fetch and cost nearly the
    same as it; `fetching` itself if there is none."""
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
    """Chooses each node in its turn, whatever it has or does."""

    weighs_cost = False
    mixes_work = False
    binds_late = False

    def __init__(self, chance: Callable[[], float]) -> None:
        self._turns: dict[Role, int] = {"prefill": 0, "decode": 0}

    def choose(self, candidates: Sequence[Candidate], task: Role) -> Candidate:
        turn = self._turns[task]
        self._turns[task] = turn + 1
        return candidates[turn % len(candidates)]


class LeastLoaded:
    """Chooses the shortest queue for prompts and the fewest requests for answers; chance decides
    among equals."""

    weighs_cost = False
    mixes_work = False
    binds_late = False

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance

    def choose(self, candidates: Sequence[Candidate], task: Role) -> Candidate:
        loads = [(c.cost.queue_s, c.num_requests) for c in candidates]
        least = min(loads)
        equals = [c for c, load in zip(candidates, loads, strict=True) if load == least]
        return _any(equals, self._chance)


class LongestPrefix:
    """Chooses the node that has most of the prompt; among equals the one with the shortest
    queue."""

    weighs_cost = False
    mixes_work = False
    binds_late = False

    def __init__(self, chance: Callable[[], float]) -> None:
        self._least_loaded = LeastLoaded(chance)

    def choose(self, candidates: Sequence[Candidate], task: Role) -> Candidate:
        longest = max(c.owned_pages for c in candidates)
        equals = [c for c in candidates if c.owned_pages == longest]
        return self._least_loaded.choose(equals, task)


POLICIES: dict[str, Callable[[Callable[[], float]], Policy]] = {
    "cost": CheapestRoute,
    "disaggregate": Disaggregate,
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "longest-prefix": LongestPrefix,
}


def _any(candidates: Sequence[Candidate], chance: Callable[[], float]) -> Candidate:
    return candidates[int(chance() * len(candidates))] if len(candidates) > 1 else candidates[0]
