"""Requests replayed on a virtual clock with all their decode steps: the real index, queues, cost,
router and dispatch queue, against modelled nodes that compute prompts and answer.

The model, fixed so that figures compare, is Llama-3-8B on an H200 as it was measured:

    step without answers   max(4.85 ms, prompt tokens / 40,000 per second)
    step with k answers    4.85 ms + k × 0.08 ms + prompt tokens / 40,000 per second

A step has a token of every answer and then chunks of prompts, 2,048 tokens at most; beside answers
fewer, if the node has a bound. Prompts share them as real nodes do, the shortest rest first, or for
comparison in the order of arrival. A prompt that another node answers is there
3 ms after its last chunk: its pages travel while it is computed. A fetch takes 2 ms + tokens /
200,000 per second while the node computes others. Heartbeats come every 0.05 s; what is owned is
known at once.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from msgspec.structs import replace

from benchmarks.replaying.leaf_lru import LeafLru
from benchmarks.replaying.replay import LAYOUT, LEASE_S, Greedy
from coordinator.ownership.index import PrefixIndex
from coordinator.routing.demand import Demand
from coordinator.routing.dispatch import DispatchQueue
from coordinator.routing.placement import Placement
from coordinator.routing.policies import POLICIES, Policy
from coordinator.routing.registry import Registry
from coordinator.routing.route import Route
from coordinator.routing.routed_request import RoutedRequest
from coordinator.routing.router import Router
from kvrelay.bench.workloads.trace import BLOCK_TOKENS, TraceRequest
from protocol.admission import admission_tokens, chunk_sizes, chunk_tokens, most_tokens
from protocol.hashing import PageHash
from protocol.ids import Node, Role
from protocol.layout import KVLayout
from protocol.messages import Heartbeat, Load, NodeInfo

STEP_BASE_S = 0.00485
STEP_ANSWER_S = 0.00008
PROMPT_TOKENS_PER_S = 40_000.0
CHUNK_TOKENS = 2_048
HANDOVER_S = 0.003
FETCH_BASE_S = 0.002
FETCH_TOKENS_PER_S = 200_000.0
HEARTBEAT_S = 0.05
TOKENS_PER_NODE = 5_000 * BLOCK_TOKENS
MAX_RUNNING = 256
RATE_WEIGHT = 0.2
"""Share of the newest step in the measured duration of steps."""


class GreedyMixed(Greedy):
    """As `Greedy`, with decode nodes among the candidates for a prompt: nobody's delay counts."""

    mixes_work = True


SERVED: dict[str, Callable[[Callable[[], float]], Policy]] = {**POLICIES, "greedy": GreedyMixed}
"""The product's policies, and one to compare with."""


@dataclass(frozen=True)
class ServingPlan:
    """What the requests are served by."""

    roles: tuple[Role, ...]
    policy: str
    max_itl_s: float = 0.0
    in_order_of_arrival: bool = False
    """Prompts are computed one after another, as they came, and routing knows it."""


@dataclass(frozen=True)
class Workload:
    """What is asked for."""

    requests: Sequence[TraceRequest]
    follows: Mapping[int, int] = field(default_factory=dict)
    """For a request, by number, the one after whose answer it is sent. Its `arrival_s` is the pause
    between the two."""
    others: frozenset[int] = frozenset()
    """Requests that are there beside those that are looked at."""
    page_tokens: int = BLOCK_TOKENS
    """The number of tokens that one hash of a request stands for."""
    hashes_answers: bool = False
    """True if the hashes of a request go on over its answer, which then is cached too."""


@dataclass
class Served:
    """What came of it."""

    first_token_s: list[float] = field(default_factory=list)
    others_first_token_s: list[float] = field(default_factory=list)
    """The same for the `others` of the workload."""
    gaps_s: list[float] = field(default_factory=list)
    """Between any two tokens of an answer that follow each other."""
    num_mixed: int = 0
    """Prompts that were computed where they were answered."""
    duration_s: float = 0.0


@dataclass(eq=False)
class _Served:
    number: int
    request: TraceRequest
    prompt_hashes: list[PageHash]
    """One for each full page of the prompt."""
    routed: RoutedRequest
    answered_by: _ServingNode | None = None
    num_left: int = 0
    """Tokens of the prompt that are to be computed; known when the first chunk begins."""
    has_begun: bool = False
    fetched_pages: int = 0
    fetch_ends: float = 0.0
    num_tokens: int = 0
    """Tokens of the answer so far."""
    last_token_at: float = 0.0


class _ServingNode:
    """A node that computes prompts, and answers."""

    def __init__(self, name: str, role: Role, plan: ServingPlan, layout: KVLayout) -> None:
        self.role: Role = role
        self.info = _info(Node(name, 1), plan, layout)
        self.cache = LeafLru(self.info.num_pages)
        self.prompts: list[_Served] = []
        self.answers: list[_Served] = []
        self.num_coming = 0
        """Answers whose prompts other nodes compute."""
        self.is_computing = False
        self.step_s = 0.0

    def load(self) -> Load:
        requests = self.prompts + self.answers
        layout = self.info.layout
        num_held = sum(layout.num_pages(r.request.num_tokens + r.num_tokens) for r in requests)
        return Load(
            role=self.role,
            num_running=len(requests) + self.num_coming,
            queued_tokens=sum(p.num_left for p in self.prompts),
            free_pages=max(0, self.cache.num_free - num_held),
            cached_pages=max(0, self.info.num_pages - num_held - self.cache.num_free),
            prefill_tokens_per_s=PROMPT_TOKENS_PER_S,
            step_s=self.step_s,
            link_bytes_per_s=FETCH_TOKENS_PER_S * layout.page_bytes / layout.page_size,
        )

    def plan_chunks(self, now: float) -> tuple[list[tuple[_Served, int]], float]:
        """Returns the chunks of the next step, and how long it takes."""
        most, max_itl_s = CHUNK_TOKENS, self.info.max_itl_s
        if self.answers and max_itl_s:
            most = min(most, chunk_tokens(max_itl_s, self.step_s, PROMPT_TOKENS_PER_S))
        here = [prompt for prompt in self.prompts if prompt.fetch_ends <= now]
        for prompt in here:
            self._begin(prompt, now)
        counts = self._share_out([prompt.num_left for prompt in here], most)
        chunks = [(prompt, count) for prompt, count in zip(here, counts, strict=True) if count]
        prompt_s = sum(counts) / PROMPT_TOKENS_PER_S
        if not self.answers:
            return chunks, max(STEP_BASE_S, prompt_s)
        step_s = STEP_BASE_S + len(self.answers) * STEP_ANSWER_S
        share = RATE_WEIGHT if self.step_s else 1.0
        self.step_s += share * (step_s - self.step_s)
        return chunks, step_s + prompt_s

    def _share_out(self, rests: Sequence[int], max_tokens: int) -> list[int]:
        if self.info.chunk_tokens:
            return chunk_sizes(rests, max_tokens)
        before = itertools.accumulate(rests, initial=0)
        return [max(0, min(rest, max_tokens - b)) for rest, b in zip(rests, before, strict=False)]

    def _begin(self, prompt: _Served, now: float) -> None:
        if prompt.has_begun:
            return
        prompt.has_begun = True
        hashes = prompt.prompt_hashes
        num_hits = self.cache.match(hashes)
        self.cache.use(hashes[:num_hits], now)
        num_cached = max(num_hits, prompt.fetched_pages) * self.info.layout.page_size
        prompt.num_left = max(1, prompt.request.num_tokens - num_cached)


class Serving:
    """Serves one workload by one set of nodes; `run` once."""

    def __init__(self, workload: Workload, plan: ServingPlan, seed: int = 0) -> None:
        self._workload = workload
        self._layout = replace(LAYOUT, page_size=workload.page_tokens)
        self._followers: dict[int, list[int]] = {}
        for number, before in workload.follows.items():
            self._followers.setdefault(before, []).append(number)
        names = [f"{role[0]}{i}" for i, role in enumerate(plan.roles)]
        self._nodes = {
            name: _ServingNode(name, role, plan, self._layout)
            for name, role in zip(names, plan.roles, strict=True)
        }
        policy = SERVED[plan.policy](partial(random.Random.random, random.Random(seed)))
        self._registry, self._index = Registry(), PrefixIndex()
        self._placement = Placement(self._registry, self._index, Router(policy))
        self._queue = DispatchQueue(self._placement, policy.binds_late)
        self._next_dispatch = float("inf")
        self._requests: dict[str, _Served] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = itertools.count()
        self._now = 0.0
        self._num_unfinished = len(workload.requests)
        self._served = Served()

    def run(self) -> Served:
        """Returns what the clients saw."""
        for number, request in enumerate(self._workload.requests):
            if number not in self._workload.follows:
                self._at(request.arrival_s, self._arrive, number)
        self._beat()
        while self._num_unfinished:
            self._now, _, handle, arguments = heapq.heappop(self._events)
            handle(*arguments)
        self._served.duration_s = self._now
        return self._served

    def _at(self, when: float, handle: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._serial), handle, arguments))

    def _beat(self) -> None:
        for node in self._nodes.values():
            self._registry.heartbeat(Heartbeat(node.info, node.load(), LEASE_S), self._now)
            live = self._registry.get(node.info.node)
            assert live is not None
            self._placement.heard(live, self._now)
        self._at(self._now + HEARTBEAT_S, self._beat)

    def _arrive(self, number: int) -> None:
        request, layout = self._workload.requests[number], self._layout
        most = most_tokens(request.num_tokens, request.num_output_tokens)
        hashes = request.hashes[: request.num_tokens // layout.page_size]
        demand = Demand(
            request.num_tokens,
            layout.num_pages(most),
            layout.num_pages(admission_tokens(request.num_tokens, most)),
            hashes,
        )
        routed = RoutedRequest(str(number), demand, self._now)
        self._requests[routed.request_id] = _Served(number, request, hashes, routed)
        self._queue.add(routed, self._now)
        self._dispatch()

    def _dispatch(self) -> None:
        for routed, route in self._queue.dispatch(self._now):
            self._send(self._requests[routed.request_id], route)
        wait_s = self._queue.dispatch_in_s(self._now)
        if wait_s is not None:
            when = self._now + wait_s
            if when < self._next_dispatch or self._next_dispatch <= self._now:
                self._next_dispatch = when
                self._at(when, self._dispatch)

    def _send(self, one: _Served, route: Route) -> None:
        node = self._nodes[route.computes.name]
        one.answered_by = self._nodes[route.decode.name]
        one.fetch_ends = self._now
        if route.fetch_from is not None:
            source = self._nodes[route.fetch_from.name].cache
            there = min(route.fetch_pages, source.match(one.prompt_hashes))
            here = node.cache.match(one.prompt_hashes)
            if there > here:
                one.fetched_pages = there
                num_tokens = (there - here) * self._layout.page_size
                one.fetch_ends += FETCH_BASE_S + num_tokens / FETCH_TOKENS_PER_S
        one.num_left = one.request.num_tokens - route.cached_pages * self._layout.page_size
        if one.answered_by is node:
            self._served.num_mixed += 1
        else:
            one.answered_by.num_coming += 1
        node.prompts.append(one)
        self._at(one.fetch_ends, self._compute, node)

    def _compute(self, node: _ServingNode) -> None:
        if node.is_computing:
            return
        chunks, seconds = node.plan_chunks(self._now)
        if not chunks and not node.answers:
            return
        node.is_computing = True
        self._at(self._now + seconds, self._computed, node, chunks, list(node.answers))

    def _computed(
        self, node: _ServingNode, chunks: list[tuple[_Served, int]], answers: list[_Served]
    ) -> None:
        node.is_computing = False
        for answer in answers:
            self._served.gaps_s.append(self._now - answer.last_token_at)
            self._token(answer)
        for prompt, count in chunks:
            prompt.num_left -= count
        for prompt, _ in chunks:  # the first of them may start the next step
            if prompt.num_left == 0:
                self._prompt_is_computed(node, prompt)
        self._compute(node)
        if chunks or answers:
            self._dispatch()

    def _prompt_is_computed(self, node: _ServingNode, prompt: _Served) -> None:
        node.prompts.remove(prompt)
        self._store(node, prompt.prompt_hashes)
        if prompt.answered_by is node:
            self._first_token(prompt)
        else:
            self._at(self._now + HANDOVER_S, self._first_token, prompt)

    def _first_token(self, one: _Served) -> None:
        node = one.answered_by
        assert node is not None
        if one.routed.computing is not one.routed.answering:
            node.num_coming -= 1
            self._store(node, one.prompt_hashes)
        self._placement.computed(one.routed, self._now)
        is_other = one.number in self._workload.others
        served = self._served.others_first_token_s if is_other else self._served.first_token_s
        served.append(self._now - one.routed.arrived)
        node.answers.append(one)
        self._token(one)
        self._compute(node)

    def _token(self, answer: _Served) -> None:
        answer.num_tokens += 1
        answer.last_token_at = self._now
        if answer.num_tokens < answer.request.num_output_tokens:
            return
        assert answer.answered_by is not None
        answer.answered_by.answers.remove(answer)
        if self._workload.hashes_answers:
            num_tokens = answer.request.num_tokens + answer.num_tokens - 1
            hashes = answer.request.hashes[: num_tokens // self._layout.page_size]
            self._store(answer.answered_by, hashes)
        self._placement.ended(answer.routed, self._now)
        del self._requests[answer.routed.request_id]
        self._num_unfinished -= 1
        for number in self._followers.get(answer.number, ()):
            pause_s = self._workload.requests[number].arrival_s
            self._at(self._now + pause_s, self._arrive, number)

    def _store(self, node: _ServingNode, hashes: Sequence[PageHash]) -> None:
        stored, evicted = node.cache.insert(hashes, self._now)
        self._index.removed(node.info.node, evicted)
        self._index.stored(node.info.node, stored)


def _info(node: Node, plan: ServingPlan, layout: KVLayout) -> NodeInfo:
    return NodeInfo(
        node=node,
        control_address=node.name,
        data_addresses=(node.name,),
        layout=layout,
        model_fingerprint="trace",
        num_pages=TOKENS_PER_NODE // layout.page_size,
        max_running_requests=MAX_RUNNING,
        max_queued_requests=1 << 20,
        device="virtual",
        max_itl_s=plan.max_itl_s,
        chunk_tokens=0 if plan.in_order_of_arrival else CHUNK_TOKENS,
    )
