"""Live nodes for tests of the coordinator's pure parts."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from functools import partial

import msgspec

from coordinator.ownership.index import PrefixIndex
from coordinator.routing.demand import Demand
from coordinator.routing.dispatch import DispatchQueue
from coordinator.routing.placement import Placement
from coordinator.routing.policies import POLICIES
from coordinator.routing.registry import LiveNode, Registry
from coordinator.routing.route import Route
from coordinator.routing.routed_request import RoutedRequest
from coordinator.routing.router import Router
from protocol.hashing import PAGE_HASH_BYTES, PageHash
from protocol.ids import Node, Role
from protocol.layout import KVLayout
from protocol.messages import Heartbeat, Load, NodeInfo

LAYOUT = KVLayout(num_layers=2, page_size=16, num_kv_heads=2, head_dim=16, dtype="float32")
LEASE_S = 3.0
RATE = 1000.0  # prompt tokens per second of every node


def info_of(node: Node, **other: object) -> NodeInfo:
    values: dict[str, object] = {
        "control_address": f"tcp://{node.name}:1",
        "data_addresses": (f"{node.name}:2",),
        "layout": LAYOUT,
        "model_fingerprint": "model",
        "num_pages": 1000,
        "max_running_requests": 8,
        "max_queued_requests": 16,
        "device": "cpu",
    }
    return NodeInfo(node=node, **(values | other))  # type: ignore[arg-type]


def heartbeat(role: Role, node: Node, load: Load | None = None, **other: object) -> Heartbeat:
    load = load or load_of()
    return Heartbeat(info_of(node, **other), msgspec.structs.replace(load, role=role), LEASE_S)


def load_of(queued_tokens: int = 0, num_running: int = 0, free_pages: int = 1000) -> Load:
    return Load(
        role="decode",
        queued_tokens=queued_tokens,
        num_running=num_running,
        free_pages=free_pages,
        prefill_tokens_per_s=RATE,
        step_s=0.01,
        link_bytes_per_s=1e9,
    )


def registry_of(loads: dict[str, Load], now: float = 0.0) -> Registry:
    """Names that begin with p are prefill nodes, the others decode nodes."""
    registry = Registry()
    for name, load in loads.items():
        role: Role = "prefill" if name.startswith("p") else "decode"
        registry.heartbeat(heartbeat(role, Node(name, 1), load), now)
    return registry


class ReloadedIndex(PrefixIndex):
    """Reloads a node as the follower does: what was found is stored, what was not is removed."""

    def reload(self, node: Node, hashes: Sequence[PageHash]) -> None:
        self.stored(node, hashes)
        self.removed(node, sorted(set(self.pages(node)).difference(hashes)))


class Nodes:
    """A coordinator's placement and dispatch queue over nodes that come and go by name."""

    def __init__(
        self,
        *names: str,
        policy: str = "disaggregate",
        seed: int = 0,
    ) -> None:
        self.registry = Registry()
        self.index = PrefixIndex()
        chosen = POLICIES[policy](partial(random.Random.random, random.Random(seed)))
        router = Router(chosen)
        self.placement = Placement(self.registry, self.index, router)
        self.queue = DispatchQueue(self.placement, chosen.binds_late)
        self._requests: dict[str, RoutedRequest] = {}
        for name in names:
            self.join(name)

    @property
    def names(self) -> list[str]:
        return [live.node.name for live in self.registry.live()]

    def join(
        self,
        name: str,
        load: Load | None = None,
        now: float = 0.0,
        incarnation: int = 1,
        **info: object,
    ) -> LiveNode:
        """A heartbeat; the first one of a node lets it join. Names with p: prefill nodes."""
        role: Role = "prefill" if name.startswith("p") else "decode"
        node = Node(name, incarnation)
        self.registry.heartbeat(heartbeat(role, node, load, **info), now)
        live = self.registry.get(node)
        assert live is not None
        return live

    def heard(self, name: str, load: Load, now: float) -> None:
        """A heartbeat that counts for its backlog too."""
        self.placement.heard(self.join(name, load, now), now)

    def leave(self, name: str, incarnation: int = 1) -> Node:
        node = Node(name, incarnation)
        self.registry.remove(node)
        return node

    def wait(self, request_id: str, demand: Demand, arrived: float, priority: int = 0) -> None:
        """Lets a request wait for its turn."""
        routed = RoutedRequest(request_id, demand, arrived, priority)
        self._requests[request_id] = routed
        self.queue.add(routed, arrived)

    def remove(self, request_id: str) -> None:
        if request_id in self._requests:
            self.queue.remove(self._requests[request_id], 0.0)

    def waits(self, request_id: str) -> bool:
        return request_id in self._requests and self._requests[request_id] in self.queue

    def dispatch(self, now: float) -> list[tuple[str, Route]]:
        """What the queue sends, by request id."""
        return [(routed.request_id, route) for routed, route in self.queue.dispatch(now)]

    def book(self, request_id: str, demand: Demand, route: Route, now: float) -> None:
        """Sends a request past the queue."""
        routed = self._requests[request_id] = RoutedRequest(request_id, demand, now)
        self.placement.book(routed, route, now)

    def computed(self, request_id: str, now: float) -> None:
        self.placement.computed(self._requests[request_id], now)

    def ended(self, request_id: str, now: float) -> None:
        self.placement.ended(self._requests[request_id], now)

    def failed(self, request_id: str, route: Route, now: float) -> None:
        self.placement.failed(self._requests[request_id], route, now)


def demand_of(
    num_tokens: int, chain: str = "", avoid: Collection[str] = (), answer_pages: int = 1
) -> Demand:
    """A prompt of its own, or of `chain`; of the pages for its answer it needs one to begin."""
    hashes = chain_of(chain, num_tokens // LAYOUT.page_size) if chain else []
    num_pages = LAYOUT.num_pages(num_tokens)
    return Demand(num_tokens, num_pages + answer_pages, num_pages + 1, hashes, avoid)


def chain_of(name: str, num_pages: int) -> list[PageHash]:
    """Hashes of a prompt that shares no page with those of other names."""
    return [f"{name}{i}".encode().rjust(PAGE_HASH_BYTES) for i in range(num_pages)]


def booked(placement: Placement) -> dict[str, tuple[int, float]]:
    """By name of nodes with something to do: unfinished requests, and seconds of their prompts."""
    booked = {
        name: (backlog.num_requests, backlog._ours_s) for name, backlog in placement.queues.items()
    }
    return {name: both for name, both in booked.items() if both != (0, 0.0)}
