"""Replays a trace on a virtual clock: the real index, expected pages, queues, cost, router and
dispatch queue against modelled prefill nodes.

The model, fixed so that figures compare: a node computes one prompt at a time, first come first
served, in 5 ms + uncached tokens / 40,000 per second (at least one token); it caches blocks of 512
tokens, evicting the least recently used leaf; a fetch takes 2 ms + tokens / 200,000 per second
while the node computes others; blocks stored and evicted become known when the prefill ends, or
`event_lag_s` later. Answers cost nothing. Nodes send a heartbeat every 0.05 s, as real ones do
while work comes and goes.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.replaying.leaf_lru import LeafLru
from coordinator.ownership.index import PrefixIndex
from coordinator.routing.demand import Demand
from coordinator.routing.dispatch import DispatchQueue
from coordinator.routing.placement import Placement
from coordinator.routing.policies import POLICIES, Policy
from coordinator.routing.prices.candidates import CandidateList
from coordinator.routing.registry import Registry
from coordinator.routing.route import Route
from coordinator.routing.routed_request import RoutedRequest
from coordinator.routing.router import Router
from kvrelay.bench.workloads.trace import BLOCK_TOKENS, TraceRequest
from protocol.hashing import PageHash
from protocol.ids import Node, Role
from protocol.layout import KVLayout
from protocol.messages import Heartbeat, Load, NodeInfo

PREFILL_BASE_S = 0.005
PREFILL_TOKENS_PER_S = 40_000.0
FETCH_BASE_S = 0.002
FETCH_TOKENS_PER_S = 200_000.0
HEARTBEAT_S = 0.05
LEASE_S = 1e9
LAYOUT = KVLayout(
    page_size=BLOCK_TOKENS, num_layers=1, num_kv_heads=1, head_dim=1, dtype="bfloat16"
)
UNLIMITED = 1 << 40
ANSWERING = Node("d", 1)
"""Decode costs nothing in the model, so one node answers everything."""


class Greedy:
    """A policy to compare with: it takes the node with the least estimated time to first token when
    a request comes, with exact knowledge and fetches. This is Mooncake's rule (Qin et al., FAST
    2025), as sharp as it can be."""

    weighs_cost = True
    mixes_work = False
    binds_late = False

    def __init__(self, chance: Callable[[], float]) -> None:
        pass

    def choose(self, candidates: CandidateList, task: Role) -> int:
        prices = [(one.cost.first_token_s, one.work_s) for one in candidates]
        return prices.index(min(prices))


REPLAYED: dict[str, Callable[[Callable[[], float]], Policy]] = {
    **{name: policy for name, policy in POLICIES.items() if name != "cost"},
    "greedy": Greedy,
}
"""The product's policies that leave all prompts to prefill nodes, and one to compare with."""


@dataclass(frozen=True)
class Settings:
    """What is replayed on. `pages_per_node` 0: no limit."""

    nodes: int
    pages_per_node: int
    policy: str
    event_lag_s: float = 0.0
    coordinators: int = 1
    seed: int = 0


@dataclass
class Outcome:
    """What came of a replay."""

    first_token_s: list[float] = field(default_factory=list)
    hit_blocks: int = 0
    fetched_blocks: int = 0
    num_blocks: int = 0
    busy_s: list[float] = field(default_factory=list)
    duration_s: float = 0.0
    decision_s: float = 0.0
    """Time of this machine for all decisions, arrivals to routes."""

    @property
    def hit(self) -> float:
        return self.hit_blocks / self.num_blocks

    @property
    def hit_fetched(self) -> float:
        return (self.hit_blocks + self.fetched_blocks) / self.num_blocks

    @property
    def mean_s(self) -> float:
        return sum(self.first_token_s) / len(self.first_token_s)

    def quantile_s(self, share: float) -> float:
        return sorted(self.first_token_s)[int(share * len(self.first_token_s))]

    @property
    def imbalance(self) -> float:
        """Busy time of the busiest node over the mean."""
        return max(self.busy_s) * len(self.busy_s) / sum(self.busy_s)

    @property
    def utilisation(self) -> float:
        return sum(self.busy_s) / len(self.busy_s) / self.duration_s

    @property
    def us_per_decision(self) -> float:
        return self.decision_s / len(self.first_token_s) * 1e6


@dataclass(eq=False)
class _ReplayedJob:
    request: TraceRequest
    coordinator: _Coordinator
    routed: RoutedRequest
    fetched_pages: int = 0
    """Leading blocks that are there when the fetch has ended."""
    fetch_ends: float = 0.0
    estimated_s: float = 0.0


class _ReplayedNode:
    """A prefill node: a queue and a cache."""

    def __init__(self, name: str, capacity: int) -> None:
        self.capacity = capacity or UNLIMITED
        self.info = _info(Node(name, 1), self.capacity)
        self.cache = LeafLru(capacity)
        self.queue: deque[_ReplayedJob] = deque()
        self.running: _ReplayedJob | None = None
        self.running_until = 0.0
        self.busy_s = 0.0
        self.queued_s = 0.0
        """Work of the queue, as estimated when it came."""

    def load(self, now: float) -> Load:
        queued_s = self.queued_s
        if self.running is not None:
            queued_s += max(0.0, self.running_until - now)
        return Load(
            role="prefill",
            num_running=self.running is not None,
            num_waiting=len(self.queue),
            queued_tokens=int(queued_s * PREFILL_TOKENS_PER_S),
            free_pages=self.cache.num_free,
            prefill_tokens_per_s=PREFILL_TOKENS_PER_S,
            step_s=PREFILL_BASE_S,
            link_bytes_per_s=FETCH_TOKENS_PER_S * LAYOUT.page_bytes / BLOCK_TOKENS,
        )


class _Coordinator:
    """The pure parts of one, as `coordinator.service` puts them together."""

    def __init__(self, policy: str, seed: int) -> None:
        self.registry = Registry()
        self.index = PrefixIndex()
        chosen = REPLAYED[policy](random.Random(seed).random)
        self.placement = Placement(self.registry, self.index, Router(chosen))
        self.queue = DispatchQueue(self.placement, chosen.binds_late)
        self.next_dispatch = float("inf")


class Replay:
    """One trace on one set of nodes; `run` once."""

    def __init__(self, trace: list[TraceRequest], settings: Settings) -> None:
        self._trace = trace
        self._settings = settings
        self._nodes = {
            f"p{i:02d}": _ReplayedNode(f"p{i:02d}", settings.pages_per_node)
            for i in range(settings.nodes)
        }
        self._coordinators = [
            _Coordinator(settings.policy, settings.seed + i) for i in range(settings.coordinators)
        ]
        self._jobs: dict[str, _ReplayedJob] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = itertools.count()
        self._now = 0.0
        self._unfinished = len(trace)
        self._outcome = Outcome()

    def run(self, progress: Callable[[int], None] = lambda done: None) -> Outcome:
        """`progress` is told the requests that are done, now and then."""
        for i, request in enumerate(self._trace):
            self._at(request.arrival_s, self._arrive, i)
        self._beat()
        while self._unfinished:
            self._now, _, handle, arguments = heapq.heappop(self._events)
            handle(*arguments)
            done = len(self._outcome.first_token_s)
            if done % 500 == 0:
                progress(done)
        self._outcome.busy_s = [node.busy_s for node in self._nodes.values()]
        self._outcome.duration_s = self._now
        return self._outcome

    def _at(self, when: float, handle: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._serial), handle, arguments))

    def _beat(self) -> None:
        for node in self._nodes.values():
            self._heartbeat(node)
        answering = Load(role="decode", free_pages=UNLIMITED)
        for coordinator in self._coordinators:
            info = _info(ANSWERING, UNLIMITED)
            coordinator.registry.heartbeat(Heartbeat(info, answering, LEASE_S), self._now)
        self._at(self._now + HEARTBEAT_S, self._beat)

    def _heartbeat(self, node: _ReplayedNode) -> None:
        message = Heartbeat(node.info, node.load(self._now), LEASE_S)
        for coordinator in self._coordinators:
            coordinator.registry.heartbeat(message, self._now)
            for live in coordinator.registry.live("prefill"):
                if live.info is node.info:
                    coordinator.placement.heard(live, self._now)

    def _arrive(self, number: int) -> None:
        request = self._trace[number]
        coordinator = self._coordinators[number % len(self._coordinators)]
        request_id = str(number)
        num_pages = len(request.hashes)
        demand = Demand(request.num_tokens, num_pages, num_pages, request.hashes)
        routed = RoutedRequest(request_id, demand, self._now)
        self._jobs[request_id] = _ReplayedJob(request, coordinator, routed)
        started = time.perf_counter()
        coordinator.queue.add(routed, self._now)
        self._outcome.decision_s += time.perf_counter() - started
        self._dispatch(coordinator)

    def _dispatch(self, coordinator: _Coordinator) -> None:
        started = time.perf_counter()
        sent = coordinator.queue.dispatch(self._now)
        self._outcome.decision_s += time.perf_counter() - started
        for routed, route in sent:
            self._send(self._jobs[routed.request_id], route)
        wait_s = coordinator.queue.dispatch_in_s(self._now)
        if wait_s is not None:
            when = self._now + wait_s
            if when < coordinator.next_dispatch or coordinator.next_dispatch <= self._now:
                coordinator.next_dispatch = when
                self._at(when, self._dispatch, coordinator)

    def _send(self, job: _ReplayedJob, route: Route) -> None:
        assert route.prefill is not None
        node = self._nodes[route.prefill.name]
        job.fetch_ends = self._now
        if route.fetch_from is not None:
            source = self._nodes[route.fetch_from.name].cache
            there = min(route.fetch_pages, source.match(job.request.hashes))
            here = node.cache.match(job.request.hashes)
            if there > here:
                job.fetched_pages = there
                num_tokens = (there - here) * BLOCK_TOKENS
                job.fetch_ends += FETCH_BASE_S + num_tokens / FETCH_TOKENS_PER_S
        job.estimated_s = route.busy_s
        node.queued_s += job.estimated_s
        node.queue.append(job)
        self._compute_next(node)

    def _compute_next(self, node: _ReplayedNode) -> None:
        if node.running is not None or not node.queue:
            return
        job = node.queue[0]
        if job.fetch_ends > self._now:
            self._at(job.fetch_ends, self._compute_next, node)
            return
        node.queue.popleft()
        node.queued_s = node.queued_s - job.estimated_s if node.queue else 0.0
        hashes = job.request.hashes
        num_hits = node.cache.match(hashes)
        node.cache.use(hashes[:num_hits], self._now)
        num_cached = max(num_hits, job.fetched_pages)
        self._outcome.hit_blocks += num_hits
        self._outcome.fetched_blocks += num_cached - num_hits
        self._outcome.num_blocks += len(hashes)
        seconds = _prefill_s(job.request, num_cached)
        node.running, node.running_until = job, self._now + seconds
        node.busy_s += seconds
        self._at(self._now + seconds, self._computed, node)

    def _computed(self, node: _ReplayedNode) -> None:
        job = node.running
        assert job is not None
        node.running = None
        self._unfinished -= 1
        self._outcome.first_token_s.append(self._now - job.request.arrival_s)
        stored, evicted = node.cache.insert(job.request.hashes, self._now)
        self._at(self._now + self._settings.event_lag_s, self._visible, node, stored, evicted)
        self._compute_next(node)
        self._at(self._now, self._told, job)

    def _visible(
        self, node: _ReplayedNode, stored: list[PageHash], evicted: list[PageHash]
    ) -> None:
        for coordinator in self._coordinators:
            coordinator.index.removed(node.info.node, evicted)
            coordinator.index.stored(node.info.node, stored)

    def _told(self, job: _ReplayedJob) -> None:
        """The first token reaches the coordinator, after the ownership that became known."""
        job.coordinator.placement.ended(job.routed, self._now)
        del self._jobs[job.routed.request_id]
        self._dispatch(job.coordinator)


def _prefill_s(request: TraceRequest, num_cached_blocks: int) -> float:
    num_uncached = max(1, request.num_tokens - num_cached_blocks * BLOCK_TOKENS)
    return PREFILL_BASE_S + num_uncached / PREFILL_TOKENS_PER_S


def _info(node: Node, num_pages: int) -> NodeInfo:
    return NodeInfo(
        node=node,
        control_address=node.name,
        data_addresses=(node.name,),
        layout=LAYOUT,
        model_fingerprint="trace",
        num_pages=num_pages,
        max_running_requests=UNLIMITED,
        max_queued_requests=UNLIMITED,
        device="virtual",
    )
