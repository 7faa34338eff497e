"""`NodeFigures`: what the prices of requests depend on of each node, as arrays. Pure.

A request is priced on all nodes at once, so their figures stand in arrays, one place for each node.
What no request changes is worked out when a node tells something new, or is given something to do,
and not again with each request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic

import msgspec
import numpy as np

from coordinator.routing.cost import ANSWER_STEPS, DEFAULT_STEP_S, Floats, Number, Terms, spread
from coordinator.routing.node_queue import NodeQueueEstimate
from coordinator.routing.registry import LiveNode
from protocol.ids import Node


class Figures(msgspec.Struct, Generic[Number], frozen=True):
    """The figures of one node, or those of many in arrays."""

    num_pages: Number
    free_pages: Number
    room_pages: Number
    """Pages for requests to come, less those that are promised to requests on their way there."""
    prefill_tokens_per_s: Number
    step_s: Number
    num_running: Number
    """Answers at the node, by its last heartbeat."""
    num_requests: Number
    """Unfinished requests that it has, as far as is known."""
    max_running: Number
    """How many requests it has places for."""
    begin_s: Number
    """How long an answer waits there for its first step, if it has a place and pages."""
    answer_s: Number
    """The time in which a place or pages become free if it has not: one answer."""
    spread: Number
    """How many times longer a prompt takes there than it adds to the steps of answers."""
    passed_s: Number
    """The work of the longest prompt there that lets shorter ones pass; 0 if there is none."""
    total_s: Number
    """All work that this coordinator ever sent there."""


def figures_of(live: LiveNode, queue: NodeQueueEstimate | None) -> Figures[float]:
    """Returns the figures of one node; `queue` is None if nothing was ever sent to it."""
    info, load = live.info, live.load
    num_ours, promised_pages, total_s, passed_s = 0, 0, 0.0, 0.0
    if queue is not None:
        num_ours, total_s = queue.num_requests, queue.total_s
        promised_pages = queue.promised_pages
        passed_s = queue.longest_s if info.chunk_tokens else 0.0
    num_requests = max(num_ours, load.num_running + load.num_waiting)
    max_running, step_s = info.max_running_requests, live.step_s or DEFAULT_STEP_S
    return Figures(
        num_pages=info.num_pages,
        free_pages=load.free_pages,
        room_pages=load.room_pages - promised_pages,
        prefill_tokens_per_s=live.prefill_tokens_per_s,
        step_s=live.step_s,
        num_running=load.num_running,
        num_requests=num_requests,
        max_running=max_running,
        begin_s=step_s * (1 + num_requests / max_running),
        answer_s=step_s * ANSWER_STEPS,
        spread=spread(live) if load.num_running else 1.0,
        passed_s=passed_s,
        total_s=total_s,
    )


class NodeFigures:
    """Keeps the figures of some nodes in their order.

    It is told of a change by `changed`, and `refresh` then looks only at the nodes that changed:
    between two requests these are few. `queues` has the queues by node name; a node without one has
    nothing to do.
    """

    def __init__(self, nodes: Sequence[LiveNode], queues: Mapping[str, NodeQueueEstimate]) -> None:
        self.nodes = nodes
        self.busy: dict[int, NodeQueueEstimate] = {}
        """The queues with something in them, by the place of their node."""
        self._queues = queues
        self._places = {live.node: place for place, live in enumerate(nodes)}
        self._places_by_name = {node.name: place for node, place in self._places.items()}
        self._table = np.zeros((len(Figures.__struct_fields__), len(nodes)))
        self.all: Figures[Floats] = Figures(*self._table)
        self.everywhere = np.arange(len(nodes))
        """The places of all nodes."""
        self.least_pages = 0.0
        """The number of pages of the smallest node."""
        self._stale = set(range(len(nodes)))
        self._presumed: set[int] = set()
        """Nodes whose rates are presumed, so that they change with what other nodes tell."""
        self.refresh()

    def __len__(self) -> int:
        return len(self.nodes)

    def changed(self, name: str) -> None:
        """Notes that a node has told something, or that its queue has changed."""
        place = self._places_by_name.get(name)
        if place is not None:
            self._stale.add(place)

    def refresh(self) -> None:
        """Brings the arrays up to date."""
        for place in self._stale | self._presumed if self._presumed else self._stale:
            live = self.nodes[place]
            queue = self._queues.get(live.info.node.name)
            self._table[:, place] = msgspec.structs.astuple(figures_of(live, queue))
            if queue is None or queue.is_empty:
                self.busy.pop(place, None)
            else:
                self.busy[place] = queue
            if not live.load.prefill_tokens_per_s or not live.load.step_s:
                self._presumed.add(place)
            else:
                self._presumed.discard(place)
        if self._stale:
            self.least_pages = float(self.all.num_pages.min(initial=np.inf))
            self._stale.clear()

    def place(self, name: str) -> int | None:
        """Returns the place of a node in the arrays; None if it is not among the nodes."""
        return self._places_by_name.get(name)

    def by_node(self, numbers: Mapping[Node, int]) -> Floats:
        """Returns the numbers of these nodes as an array; 0 for nodes without one."""
        return self._array({self._places.get(node): one for node, one in numbers.items()})

    def by_name(self, numbers: Mapping[str, float]) -> Terms:
        """Returns the numbers of the nodes of these names as an array; 0 for nodes without one, and
        for all if there is none, as is usual."""
        if not numbers:
            return 0.0
        return self._array({self.place(name): one for name, one in numbers.items()})

    def _array(self, numbers: Mapping[int | None, float]) -> Floats:
        found = np.zeros(len(self.nodes))
        for place, number in numbers.items():
            if place is not None:
                found[place] = number
        return found
