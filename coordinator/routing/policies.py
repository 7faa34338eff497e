"""Routing policies choose among the candidates. Pure; one contract suite holds for all of them.

A policy is asked twice for a request: for the node that computes its prompt, and for the one that
answers it. To add one, write a class with `choose` and name it in `POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from coordinator.routing.cost import Floats
from coordinator.routing.prices.candidates import CandidateList, Places
from protocol.ids import Role

TIE_S = 0.001
"""Scores closer than this are equal: estimates are no better."""
NEAR_TIE_SHARE = 0.05
"""Rates that equal nodes measure differ by so much."""


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

    def choose(self, candidates: CandidateList, task: Role) -> int:
        """Returns the position of one of `candidates`, of which there is at least one, to do
        `task`."""


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

    def choose(self, candidates: CandidateList, task: Role) -> int:
        if len(candidates) == 1:
            return 0
        scores = candidates.scores
        best = _owner_instead(candidates, int(scores.argmin()))
        (equals,) = (scores <= scores[best] + TIE_S).nonzero()
        if len(equals) == 1:
            return best
        equals = _with_most(equals, candidates.owned_pages)
        return _any(_with_least(equals, candidates.works_s), self._chance)


class Disaggregate(CheapestRoute):
    """Chooses the candidate with the least estimated cost, and leaves each node to its role: no
    prompt is computed beside answers as long as there is a prefill node."""

    mixes_work = False


def _owner_instead(candidates: CandidateList, best: int) -> int:
    """Returns the best of the candidates that have what the one at `best` would fetch and cost
    nearly the same as it; `best` itself if it fetches nothing or there is none."""
    if not candidates.any_fetches:
        return best
    fetching = candidates[best]
    if fetching.fetch_from is None:
        return best
    limit = fetching.score * (1 + NEAR_TIE_SHARE) + TIE_S
    is_owner = candidates.owned_pages >= fetching.fetch_pages
    (owners,) = (is_owner & (candidates.scores <= limit)).nonzero()
    return int(owners[candidates.scores[owners].argmin()]) if len(owners) else best


class RoundRobin:
    """Chooses each node in its turn, whatever it has or does."""

    weighs_cost = False
    mixes_work = False
    binds_late = False

    def __init__(self, chance: Callable[[], float]) -> None:
        self._turns: dict[Role, int] = {"prefill": 0, "decode": 0}

    def choose(self, candidates: CandidateList, task: Role) -> int:
        turn = self._turns[task]
        self._turns[task] = turn + 1
        return turn % len(candidates)


class LeastLoaded:
    """Chooses the shortest queue for prompts and the fewest requests for answers; chance decides
    among equals."""

    weighs_cost = False
    mixes_work = False
    binds_late = False

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance

    def choose(self, candidates: CandidateList, task: Role) -> int:
        return self.choose_of(np.arange(len(candidates)), candidates)

    def choose_of(self, positions: Places, candidates: CandidateList) -> int:
        """Returns the least loaded of the candidates at `positions`."""
        positions = _with_least(positions, candidates.queues_s)
        return _any(_with_least(positions, candidates.num_requests), self._chance)


class LongestPrefix:
    """Chooses the node that has most of the prompt; among equals the one with the shortest
    queue."""

    weighs_cost = False
    mixes_work = False
    binds_late = False

    def __init__(self, chance: Callable[[], float]) -> None:
        self._least_loaded = LeastLoaded(chance)

    def choose(self, candidates: CandidateList, task: Role) -> int:
        longest = _with_most(np.arange(len(candidates)), candidates.owned_pages)
        return self._least_loaded.choose_of(longest, candidates)


POLICIES: dict[str, Callable[[Callable[[], float]], Policy]] = {
    "cost": CheapestRoute,
    "disaggregate": Disaggregate,
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "longest-prefix": LongestPrefix,
}


def _with_least(positions: Places, values: Floats) -> Places:
    """Returns those of `positions` at which `values` has its least there."""
    if len(positions) == 1:
        return positions
    found = values[positions]
    return positions[found == found[found.argmin()]]


def _with_most(positions: Places, values: Floats) -> Places:
    """Returns those of `positions` at which `values` has its greatest there."""
    if len(positions) == 1:
        return positions
    found = values[positions]
    return positions[found == found[found.argmax()]]


def _any(positions: Places, chance: Callable[[], float]) -> int:
    return int(positions[int(chance() * len(positions))] if len(positions) > 1 else positions[0])
