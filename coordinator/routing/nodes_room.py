"""`NodesRoom`: what the nodes that take requests have room for together. Pure."""

from __future__ import annotations

from coordinator.routing.placement import Placement
from coordinator.routing.registry import LiveNode


class NodesRoom:
    """Adds up what nodes tell of themselves for as long as they live. It is asked with every
    heartbeat, and looks at all nodes only after one has joined, left or changed its role, or has
    begun or ceased to drain."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._seen: list[LiveNode] = []
        """The nodes that the figures are of. Of other nodes the placement makes another list."""
        self._max_tokens = 0
        self._num_requests = 0

    @property
    def max_tokens(self) -> int:
        """The most tokens that one of the nodes has room for; 0 without nodes."""
        self._look()
        return self._max_tokens

    @property
    def num_requests(self) -> int:
        """How many requests the nodes run and let wait: decode nodes, or all if there is none."""
        self._look()
        return self._num_requests

    def _look(self) -> None:
        nodes = self._placement.open()
        if nodes is self._seen:
            return
        self._seen = nodes
        infos = [live.info for live in nodes]
        self._max_tokens = max((i.num_pages * i.layout.page_size for i in infos), default=0)
        answering = [live.info for live in self._placement.open("decode") or nodes]
        self._num_requests = sum(i.max_running_requests + i.max_queued_requests for i in answering)
