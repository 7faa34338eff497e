"""`Router`: the decision where a request runs, as a value with its reason and runner-up. Pure.

A request has two tasks: its prompt is computed (by a prefill node, or by the decode node itself)
and it is answered (by a decode node). The router lists the candidates of each with their costs, a
policy chooses. Costs of the two add up, so they are chosen apart, in time linear in the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from coordinator.routing import cost as costs
from coordinator.routing.backlog import Backlog
from coordinator.routing.cost import Cost
from coordinator.routing.demand import Demand, PageOwners
from coordinator.routing.policies import TIE_S, Candidate, Policy
from coordinator.routing.registry import LiveNode
from protocol.ids import Node
from protocol.layout import KVLayout


@dataclass(frozen=True)
class PlannedWork:
    """What the requests that go first will take of the nodes, by node name."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Time to compute the prompts that will be sent to the node."""
    pages: dict[str, int] = field(default_factory=dict)
    """Pages that requests will take of a decode node."""
    requests: dict[str, float] = field(default_factory=dict)
    """Requests that wait for room at a decode node."""

    def add(self, route: Route, admission_pages: int) -> None:
        """A request whose admission takes so many pages goes along `route` first."""
        computes = route.computes.name
        self.seconds[computes] = self.seconds.get(computes, 0.0) + route.busy_s
        self._add_pages(route, admission_pages)

    def wait(self, route: Route, admission_pages: int, num_requests: float) -> None:
        """`num_requests` like this one wait for room at the decode node of `route`; until it is
        there, the node that computes may compute for others."""
        answers = route.decode.name
        self.requests[answers] = self.requests.get(answers, 0.0) + num_requests
        self._add_pages(route, admission_pages)

    def _add_pages(self, route: Route, admission_pages: int) -> None:
        answers = route.decode.name
        self.pages[answers] = self.pages.get(answers, 0) + admission_pages - route.decode_pages


NOTHING_PLANNED = PlannedWork()


@dataclass(frozen=True)
class Cluster:
    """The nodes as a coordinator sees them at one moment."""

    prefill: list[LiveNode]
    decode: list[LiveNode]
    find: Callable[[Node], LiveNode | None]
    """Any live node, also one that gets no new requests: it can still be fetched from."""
    link_bytes_per_s: float
    """Rate between any two nodes; 0: not measured yet."""
    backlogs: Mapping[str, Backlog]
    """Backlogs by node name; a node without one has nothing to do."""
    hit_share: float
    """Share of the pages that prompts asked for lately which were found."""
    planned: PlannedWork
    now: float


class Route(msgspec.Struct, frozen=True):
    """Where a request runs. `prefill` None: the decode node computes the prompt itself."""

    prefill: Node | None
    decode: Node
    prefill_address: str
    decode_address: str
    fetch_from: Node | None
    fetch_address: str
    fetch_pages: int
    """Leading pages that the computing node is to have after fetching; 0: nothing is fetched."""
    cached_pages: int
    """Leading pages that need no computing there."""
    decode_pages: int
    """Pages of prompt and answer that the decode node has."""
    busy_s: float
    """Estimated time that it occupies the computing node: its work, and the end of a fetch that
    its queue does not cover."""
    queue_s: float
    """How long it has other prompts to compute."""
    cost: Cost
    reason: str
    runner_up: str

    @property
    def computes(self) -> Node:
        """The node that computes the prompt."""
        return self.prefill or self.decode


class Candidates(msgspec.Struct, frozen=True):
    """Everything that was weighed: nodes that would compute the prompt for another, nodes that
    would answer, and nodes that would do both."""

    prefill: list[Candidate]
    decode: list[Candidate]
    both: list[Candidate]


class NoRoute(Exception):
    """No decode node is alive or large enough; the message says so to a client."""


def no_room(num_pages: int) -> NoRoute:
    return NoRoute(f"no decode node with room for {num_pages} pages takes requests")


class Router:
    """Costs every candidate and lets `policy` choose."""

    def __init__(self, policy: Policy, local_prefill_max_tokens: int) -> None:
        """A decode node may compute up to `local_prefill_max_tokens` uncached tokens itself, if
        that is cheaper."""
        self._policy = policy
        self._local_prefill_max_tokens = local_prefill_max_tokens

    def route(self, demand: Demand, owners: PageOwners, cluster: Cluster) -> Route:
        """Returns the policy's choice. Raises NoRoute."""
        return self.choose(demand, self.candidates(demand, owners, cluster))

    def candidates(self, demand: Demand, owners: PageOwners, cluster: Cluster) -> Candidates:
        """Raises NoRoute when no decode node could answer."""
        decodes = [d for d in cluster.decode if demand.num_pages <= d.info.num_pages]
        if not decodes:
            raise no_room(demand.num_pages)
        decodes = [d for d in decodes if d.node.name not in demand.avoid] or decodes
        layout = decodes[0].info.layout
        num_prompt_pages = layout.num_pages(demand.num_tokens)
        prefills = [
            p
            for p in cluster.prefill
            if num_prompt_pages <= p.info.num_pages and p.node.name not in demand.avoid
        ]
        costing = _Costing(demand, owners, cluster, layout, may_fetch=self._policy.weighs_cost)
        computing = [costing.computing(live) for live in prefills]
        answering = [costing.answering(live) for live in decodes]
        if not prefills:
            both = [costing.both(costing.computing(a.live), a) for a in answering]
        elif self._policy.weighs_cost:
            both = list(self._worth_doing_both(costing, answering))
        else:
            both = []
        return Candidates(computing, answering, both)

    def _worth_doing_both(
        self, costing: _Costing, answering: list[Candidate]
    ) -> Iterator[Candidate]:
        """Yields decode nodes that have all but a little of the prompt.

        One that would have to fetch for that is worth it only if it would answer anyway.
        """
        first_to_answer = min(answering, key=_score)
        enough_pages = costing.pages_that_leave(self._local_prefill_max_tokens)
        for one in answering:
            if one is first_to_answer or one.owned_pages >= enough_pages:
                both = costing.both(costing.computing(one.live), one)
                if both.cached_pages >= enough_pages:
                    yield both

    def skips_prefill(
        self,
        demand: Demand,
        owned_pages: Mapping[Node, int],
        prefills: list[LiveNode],
        decodes: list[LiveNode],
    ) -> bool:
        """Returns True if some decode node would compute such a prompt itself: it owns nearly all
        of it, or no prefill node is large enough."""
        num_tokens = demand.num_tokens
        if not any(p.info.layout.num_pages(num_tokens) <= p.info.num_pages for p in prefills):
            return True
        if not self._policy.weighs_cost:
            return False
        enough_tokens = num_tokens - self._local_prefill_max_tokens
        return any(
            min(owned_pages.get(d.node, 0) * d.info.layout.page_size, demand.num_reusable)
            >= enough_tokens
            for d in decodes
        )

    def choose(self, demand: Demand, candidates: Candidates) -> Route:
        """Returns the policy's choice, with its reason."""
        both = self._policy.choose(candidates.both, "decode") if candidates.both else None
        if not candidates.prefill:
            assert both is not None  # some decode node is there
            return _route(demand, both, both, _others(candidates.both, both))
        prefill = self._policy.choose(candidates.prefill, "prefill")
        decode = self._policy.choose(candidates.decode, "decode")
        apart_s = prefill.score + decode.score
        if both is not None and both.score <= apart_s + TIE_S:
            others = _others(candidates.both, both)
            return _route(demand, both, both, [*others, (apart_s, prefill)])
        others = [(s + decode.score, c) for s, c in _others(candidates.prefill, prefill)]
        if both is not None:
            others.append((both.score, both))
        return _route(demand, prefill, decode, others)


class _Costing:
    """Estimates the costs of the candidates of one request."""

    def __init__(
        self,
        demand: Demand,
        owners: PageOwners,
        cluster: Cluster,
        layout: KVLayout,
        may_fetch: bool,
    ) -> None:
        self._demand = demand
        self._owners = owners
        self._cluster = cluster
        self._num_prompt_pages = layout.num_pages(demand.num_tokens)
        self._page_size = layout.page_size
        self._page_bytes = layout.page_bytes
        # All pages that a prompt may hit: never the one of its last token, whose logits are needed.
        self._num_reusable = demand.num_reusable // layout.page_size
        # A node that receives the prompt from the one that computes it needs no logits before.
        self._num_received = (demand.num_tokens - 1) // layout.page_size
        self._link_bytes_per_s = cluster.link_bytes_per_s or costs.DEFAULT_LINK_BYTES_PER_S
        self._source, source_pages = self._best_source() if may_fetch else (None, 0)
        self._source_pages = min(source_pages, self._num_reusable)
        self._tokens_behind_source = demand.num_tokens - self._source_pages * layout.page_size
        measured = self._source.load.link_bytes_per_s if self._source is not None else 0.0
        self._source_bytes_per_s = measured or self._link_bytes_per_s

    def computing(self, live: LiveNode) -> Candidate:
        """Returns `live` as the node that computes the prompt: from what it has itself, or after it
        has fetched the longest prefix that another node could send it, whichever costs less."""
        demand, cluster, node = self._demand, self._cluster, live.info.node
        owned = min(self._owned_pages(node), self._num_reusable)
        backlog = cluster.backlogs.get(node.name)
        queue_s = cluster.planned.seconds.get(node.name, 0.0)
        if backlog is not None:
            queue_s += backlog.seconds(cluster.now)
        compute_s = costs.compute_s(live, demand.num_tokens - owned * self._page_size)
        evict_s = costs.evict_s(live, self._num_prompt_pages - owned, cluster.hit_share)
        if owned < self._source_pages:
            fetch_s = costs.move_s(
                (self._source_pages - owned) * self._page_bytes, self._source_bytes_per_s
            )
            rest_s = costs.compute_s(live, self._tokens_behind_source)
            if costs.weigh(queue_s, fetch_s, rest_s) < costs.weigh(queue_s, 0.0, compute_s):
                cost = Cost(queue_s, fetch_s, rest_s, 0.0, 0.0, evict_s)
                pages = self._source_pages
                return _candidate(live, cost, owned, backlog, self._source, pages)
        cost = Cost(queue_s, 0.0, compute_s, 0.0, 0.0, evict_s)
        return _candidate(live, cost, owned, backlog)

    def answering(self, live: LiveNode) -> Candidate:
        """Returns `live` as the node that answers; pages of the prompt come from elsewhere."""
        demand, node = self._demand, live.info.node
        owned = self._owned_pages(node)
        backlog = self._cluster.backlogs.get(node.name)
        num_requests = backlog.num_requests if backlog is not None else 0
        num_new_pages = demand.admission_pages - owned
        num_bytes = (self._num_prompt_pages - owned) * self._page_bytes
        transfer_s = costs.move_s(num_bytes, self._link_bytes_per_s)
        planned = self._cluster.planned
        promised = planned.pages.get(node.name, 0)
        if backlog is not None:
            promised += backlog.promised_pages
        waiting = planned.requests.get(node.name, 0.0)
        wait_s = costs.wait_s(live, num_requests, num_new_pages + promised, waiting)
        evict_s = costs.evict_s(live, num_new_pages, self._cluster.hit_share)
        cost = Cost(0.0, 0.0, 0.0, transfer_s, wait_s, evict_s)
        return _candidate(live, cost, owned, backlog)

    def both(self, computing: Candidate, answering: Candidate) -> Candidate:
        """Returns the node as one that does both: nothing is sent, but the chunks of the prompt
        slow down the answers beside it."""
        live, cost = computing.live, computing.cost
        wait_s, compute_s, delay_s = answering.cost.wait_s, cost.compute_s, 0.0
        if live.load.num_running > 0:
            # Its steps run anyway, so the prompt waits for one, and works only what it adds.
            num_tokens = self._demand.num_tokens - computing.cached_pages * self._page_size
            compute_s = costs.chunk_s(live, num_tokens)
            wait_s += live.step_s
            delay_s = live.load.num_running * compute_s
        cost = msgspec.structs.replace(
            cost,
            compute_s=compute_s,
            wait_s=wait_s,
            evict_s=answering.cost.evict_s,
            delay_s=delay_s,
        )
        return msgspec.structs.replace(computing, cost=cost, score=cost.score)

    def pages_that_leave(self, num_tokens: int) -> int:
        """Returns the least number of cached pages that leave at most so many tokens to compute."""
        return -(-(self._demand.num_tokens - num_tokens) // self._page_size)

    def _owned_pages(self, node: Node) -> int:
        """Returns how many leading pages the node has or will have, and need not be sent there."""
        owned = self._owners.expected.get(node, 0)
        return owned if owned < self._num_received else self._num_received

    def _best_source(self) -> tuple[LiveNode | None, int]:
        """Returns the node that owns most of the prompt now; among equals the one that does least.

        A node that an earlier attempt failed at is left out: it may be dead, and its pages known.
        """
        best, best_pages, best_load = None, 0, 0
        for node, pages in self._owners.owned.items():
            live = self._cluster.find(node)
            if live is None or pages < best_pages or node.name in self._demand.avoid:
                continue
            load = live.load.num_running + live.load.num_waiting
            if pages > best_pages or load < best_load:
                best, best_pages, best_load = live, pages, load
        return best, best_pages


def _score(candidate: Candidate) -> float:
    return candidate.score


def _candidate(
    live: LiveNode,
    cost: Cost,
    owned_pages: int,
    backlog: Backlog | None,
    fetch_from: LiveNode | None = None,
    fetch_pages: int = 0,
) -> Candidate:
    num_requests = live.load.num_running + live.load.num_waiting
    work_s = 0.0
    if backlog is not None:
        work_s = backlog.total_s
        if backlog.num_requests > num_requests:
            num_requests = backlog.num_requests
    return Candidate(
        live, cost, cost.score, owned_pages, num_requests, work_s, fetch_from, fetch_pages
    )


def _route(
    demand: Demand,
    computing: Candidate,
    answering: Candidate,
    others: list[tuple[float, Candidate]],
) -> Route:
    """Makes the route; `computing` and `answering` are the same when a decode node does both."""
    is_apart = computing is not answering
    cost = computing.cost + answering.cost if is_apart else computing.cost
    source = computing.fetch_from
    return Route(
        prefill=computing.live.node if is_apart else None,
        decode=answering.live.node,
        prefill_address=computing.live.info.control_address if is_apart else "",
        decode_address=answering.live.info.control_address,
        fetch_from=source.node if source else None,
        fetch_address=source.info.control_address if source else "",
        fetch_pages=computing.fetch_pages,
        cached_pages=computing.cached_pages,
        decode_pages=answering.owned_pages,
        busy_s=max(0.0, cost.fetch_s - cost.queue_s) + computing.cost.compute_s,
        queue_s=computing.cost.queue_s,
        cost=cost,
        reason=_reason(demand, computing, answering, cost),
        runner_up=_runner_up(cost.score, others),
    )


def _reason(demand: Demand, computing: Candidate, answering: Candidate, cost: Cost) -> str:
    name, layout = computing.live.node.name, computing.live.info.layout
    where = f"prefill on {name}" if computing is not answering else f"{name} prefills for itself"
    fetched = ""
    if computing.fetch_from is not None:
        num_pages = computing.fetch_pages - computing.owned_pages
        fetched = (
            f", {num_pages} fetched from {computing.fetch_from.node.name} "
            f"in {cost.fetch_s * 1e3:.0f} ms"
        )
    return (
        f"{where}: {computing.owned_pages} of {layout.num_pages(demand.num_tokens)} pages cached "
        f"there{fetched}, queue {cost.queue_s * 1e3:.0f} ms, compute {cost.compute_s * 1e3:.0f} "
        f"ms; decode on {answering.live.node.name}: transfer {cost.transfer_s * 1e3:.0f} ms, "
        f"wait {cost.wait_s * 1e3:.0f} ms"
    )


def _others(candidates: list[Candidate], chosen: Candidate) -> list[tuple[float, Candidate]]:
    """Returns the candidates on other nodes with their scores."""
    return [(c.score, c) for c in candidates if c.live is not chosen.live]


def _runner_up(score: float, others: list[tuple[float, Candidate]]) -> str:
    """Tells the best alternative, and how much more it would have cost."""
    if not others:
        return "no other node"
    least, best = min(others, key=lambda other: other[0])
    more_s = least - score
    return (
        f"{best.live.node.name}: {best.cached_pages} pages cached, "
        f"{abs(more_s) * 1e3:.0f} ms {'more' if more_s >= 0 else 'less'}"
    )
