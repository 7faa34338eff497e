"""`PlannedWork`: what the requests that are to go first will take of the nodes. Pure."""

from __future__ import annotations

import msgspec

from coordinator.routing.node_queue import is_longer
from coordinator.routing.route import Route


class PlannedWork(msgspec.Struct, frozen=True):
    """What the requests that are to go first will take of the nodes, by node name."""

    works: dict[str, list[float]] = {}
    """How long each of the prompts takes that will be sent to a node."""
    works_before_all: dict[str, float] = {}
    """How long all of those take that have waited too long to let shorter ones pass."""
    pages: dict[str, int] = {}
    """The pages that requests will take of a decode node."""
    requests: dict[str, float] = {}
    """The number of requests that wait for room at a decode node."""

    def add(self, route: Route, admission_pages: int, lets_pass: bool = False) -> None:
        """Plans a request that goes along `route` first and takes `admission_pages` of the decode
        node. If it `lets_pass`, requests with shorter prompts may still go before it."""
        computes = route.computes.name
        if lets_pass:
            self.works.setdefault(computes, []).append(route.busy_s)
        else:
            before_s = self.works_before_all.get(computes, 0.0)
            self.works_before_all[computes] = before_s + route.busy_s
        self._add_pages(route, admission_pages)

    @property
    def computing(self) -> set[str]:
        """The names of the nodes that will compute planned prompts."""
        return self.works.keys() | self.works_before_all.keys()

    def seconds_before(self, name: str, work_s: float) -> float:
        """Returns how long the planned prompts take that a node computes before one of `work_s`."""
        works = self.works.get(name, ())
        shorter_s = sum(one for one in works if not is_longer(one, work_s))
        return self.works_before_all.get(name, 0.0) + shorter_s

    def wait(self, route: Route, admission_pages: int, num_requests: float) -> None:
        """Plans `num_requests` that wait for room at the decode node of `route`, each for
        `admission_pages`. Until there is room, the node that computes may compute for others."""
        answers = route.decode.name
        self.requests[answers] = self.requests.get(answers, 0.0) + num_requests
        self._add_pages(route, admission_pages)

    def _add_pages(self, route: Route, admission_pages: int) -> None:
        answers = route.decode.name
        self.pages[answers] = self.pages.get(answers, 0) + admission_pages - route.decode_pages


NOTHING_PLANNED = PlannedWork()
