"""`CandidateList`: nodes that could do one task of a request, with what each would cost. Pure.

What policies compare stands in arrays. A `Candidate` is made of it for the nodes that are chosen,
and for those that somebody asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.routing.cost import Cost, Costs, Floats
from coordinator.routing.prices.figures import NodeFigures
from coordinator.routing.prices.terms import Bools
from coordinator.routing.registry import LiveNode

Places = NDArray[np.intp]


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A node that could do one of the two tasks of a request, with what that would cost."""

    live: LiveNode
    cost: Cost
    score: float
    """The value of `cost.score`."""
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


class Fetches(msgspec.Struct, frozen=True):
    """Which nodes would fetch pages from `source`, until they have the first `num_pages`."""

    by_node: Bools
    source: LiveNode
    num_pages: int


class PricedNodes(msgspec.Struct, frozen=True):
    """All nodes of `figures`, able to do a task or not, with what it would cost on each."""

    figures: NodeFigures
    owned_pages: Floats
    costs: Costs
    scores: Floats
    fetches: Fetches | None
    """None if none of them fetches."""

    def at(self, place: int) -> Candidate:
        """Returns one node as a candidate."""
        fetches = self.fetches
        is_fetching = fetches is not None and bool(fetches.by_node[place])
        figures = self.figures.all
        return Candidate(
            self.figures.nodes[place],
            self.costs.at(place),
            self.scores.item(place),
            int(self.owned_pages[place]),
            int(figures.num_requests[place]),
            figures.total_s.item(place),
            fetches.source if fetches is not None and is_fetching else None,
            fetches.num_pages if fetches is not None and is_fetching else 0,
        )


class CandidateList(Sequence[Candidate]):
    """The candidates for one task, in a fixed order: of each part the nodes at some places.

    It looks at the figures of the nodes, so it is true until these are refreshed: whoever wants to
    keep a candidate takes it out before.
    """

    def __init__(self, *parts: tuple[PricedNodes, Places]) -> None:
        self._parts = [(priced, places) for priced, places in parts if len(places)]
        self.scores = self._joined([(priced.scores, places) for priced, places in self._parts])

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, position: int) -> Candidate: ...

    @overload
    def __getitem__(self, position: slice) -> list[Candidate]: ...

    def __getitem__(self, position: int | slice) -> Candidate | list[Candidate]:
        if isinstance(position, slice):
            return [self[i] for i in range(len(self))[position]]
        for priced, places in self._parts:
            if 0 <= position < len(places):
                return priced.at(int(places[position]))
            position -= len(places)
        raise IndexError("there are fewer candidates")

    @property
    def any_fetches(self) -> bool:
        """True if one of them might fetch pages."""
        return any(priced.fetches is not None for priced, _ in self._parts)

    @property
    def owned_pages(self) -> Floats:
        """How many leading pages of the prompt each has, or will have."""
        return self._joined([(priced.owned_pages, places) for priced, places in self._parts])

    @property
    def queues_s(self) -> Floats:
        """How long each has other prompts to compute first."""
        return self._joined(
            [
                (np.broadcast_to(priced.costs.queue_s, priced.scores.shape), places)
                for priced, places in self._parts
            ]
        )

    @property
    def num_requests(self) -> Floats:
        """How many unfinished requests each has."""
        return self._joined([(one.figures.all.num_requests, at) for one, at in self._parts])

    @property
    def works_s(self) -> Floats:
        """All work that this coordinator ever sent to each."""
        return self._joined([(one.figures.all.total_s, at) for one, at in self._parts])

    def second_best(self, best: int, more_s: float = 0.0) -> tuple[float, Candidate] | None:
        """Returns which other candidate costs least, and its score with `more_s`; None if there is
        no other than the one at `best`."""
        if len(self) < 2:
            return None
        scores = self.scores + more_s
        scores[best] = np.inf
        second = int(scores.argmin())
        return scores.item(second), self[second]

    @staticmethod
    def _joined(parts: list[tuple[Floats, Places]]) -> Floats:
        # The usual case has all nodes in one part, and nothing to copy.
        arrays = [one if len(places) == len(one) else one[places] for one, places in parts]
        if len(arrays) == 1:
            return arrays[0]
        return np.concatenate(arrays) if arrays else np.zeros(0)
