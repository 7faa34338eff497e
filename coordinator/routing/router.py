"""`Router`: decides where a request runs. Pure.

A request has two tasks: its prompt is computed and it is answered. A prefill node does the first
and a decode node the second, or one node does both: a decode node beside its other answers, or a
prefill node while the decode nodes are full or gone. The router lists the candidates of each with
their costs, a policy chooses. Costs of the two tasks add up, so they are chosen apart, in time
linear in the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from coordinator.routing import cost as costs
from coordinator.routing.cost import Cost
from coordinator.routing.demand import Demand, PageOwners
from coordinator.routing.node_queue import NodeQueueEstimate, is_longer
from coordinator.routing.policies import TIE_S, Candidate, Policy
from coordinator.routing.registry import LiveNode
from coordinator.routing.route import Route, no_room
from protocol.ids import Node
from protocol.layout import KVLayout

KEPT_FOR_PROMPTS = 0.5
"""The share of a prefill node's pages that answers leave to prompts."""


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

    def seconds_before(self, name: str, work_s: float) -> float:
        """Returns how long the planned prompts take that a node computes before one of `work_s`."""
        if not self.works and not self.works_before_all:
            return 0.0  # the usual case, and asked of every node
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


class Cluster(msgspec.Struct, frozen=True):
    """The nodes as a coordinator sees them at one moment."""

    prefill: list[LiveNode]
    decode: list[LiveNode]
    find: Callable[[Node], LiveNode | None]
    """Returns any live node, also one that gets no new requests, since pages can still be fetched
    from it."""
    link_bytes_per_s: float
    """The bandwidth between any two nodes; 0 if it was not measured yet."""
    queues: Mapping[str, NodeQueueEstimate]
    """The queues of nodes by node name; a node without one has nothing to do."""
    hit_share: float
    """The share of pages that were found in a cache, of those that prompts asked for lately."""
    planned: PlannedWork
    now: float


class Candidates(msgspec.Struct, frozen=True):
    """Everything that was weighed: nodes that would compute the prompt for another, decode nodes
    that would answer, and nodes that would do both."""

    prefill: list[Candidate]
    decode: list[Candidate]
    both: list[Candidate]


class Router:
    """Estimates the cost of every candidate and lets `policy` choose."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def mixes_work(self) -> bool:
        """True if decode nodes may compute prompts although there are prefill nodes."""
        return self._policy.mixes_work

    def route(self, demand: Demand, owners: PageOwners, cluster: Cluster) -> Route:
        """Returns the policy's choice. Raises NoRoute."""
        return self.choose(demand, self.candidates(demand, owners, cluster))

    def candidates(self, demand: Demand, owners: PageOwners, cluster: Cluster) -> Candidates:
        """Returns all candidates for both tasks. Raises NoRoute if no node could answer."""
        decodes, stand_ins = _able_to_answer(demand, cluster)
        layout = (decodes or stand_ins)[0].info.layout
        num_prompt_pages = layout.num_pages(demand.num_tokens)
        prefills = [
            p
            for p in cluster.prefill
            if num_prompt_pages <= p.info.num_pages and p.node.name not in demand.avoid
        ]
        costing = _Costing(demand, owners, cluster, layout, may_fetch=self._policy.weighs_cost)
        computing = [costing.computing(live) for live in prefills]
        answering = [costing.answering(live) for live in decodes]
        # Without prefill nodes decode nodes must do both, whatever it costs.
        doing_both = answering if self._policy.mixes_work or not prefills else []
        if decodes and not (self._policy.mixes_work and all(map(costing.is_full, decodes))):
            stand_ins = []
        elif decodes:
            stand_ins = [p for p in stand_ins if costing.leaves_room_for_prompts(p)]
        doing_both = doing_both + [costing.answering(live) for live in stand_ins]
        return Candidates(computing, answering, [costing.both(one) for one in doing_both])

    def choose(self, demand: Demand, candidates: Candidates) -> Route:
        """Returns the policy's choice, with its reason."""
        both = self._policy.choose(candidates.both, "decode") if candidates.both else None
        if not candidates.prefill or not candidates.decode:
            assert both is not None  # some node can answer
            return Route.of(demand, both, both, _others(candidates.both, both))
        prefill = self._policy.choose(candidates.prefill, "prefill")
        decode = self._policy.choose(candidates.decode, "decode")
        apart_s = prefill.score + decode.score
        # On a tie one node does both: nothing has to be sent then.
        if both is not None and both.score <= apart_s + TIE_S:
            others = _others(candidates.both, both)
            return Route.of(demand, both, both, [*others, (apart_s, prefill)])
        # A runner-up on another prefill node would have had the same decode node.
        others = [(s + decode.score, c) for s, c in _others(candidates.prefill, prefill)]
        if both is not None:
            others.append((both.score, both))
        return Route.of(demand, prefill, decode, others)


def _able_to_answer(demand: Demand, cluster: Cluster) -> tuple[list[LiveNode], list[LiveNode]]:
    """Returns the decode nodes that could answer, and the prefill nodes that could do it in their
    place. Raises NoRoute if all nodes are too small.

    A node that has failed this request is better than none.
    """
    decodes = [d for d in cluster.decode if demand.num_pages <= d.info.num_pages]
    stand_ins = [p for p in cluster.prefill if demand.num_pages <= p.info.num_pages]
    if not decodes and not stand_ins:
        raise no_room(demand.num_pages)
    willing = [d for d in decodes if d.node.name not in demand.avoid]
    willing_stand_ins = [p for p in stand_ins if p.node.name not in demand.avoid]
    if willing or willing_stand_ins:
        return willing, willing_stand_ins
    return decodes, stand_ins


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
        """Returns `live` as the node that computes the prompt: from what it has itself, or after
        fetching the longest prefix that another node could send, whichever costs less."""
        owned = self._reusable_pages(live)
        work_s = costs.compute_s(live, self._least_tokens(owned))
        queue, queue_s = self._queue(live, work_s)
        source, fetch_s, num_tokens = self._fetch(live, owned, queue_s)
        compute_s = costs.compute_s(live, num_tokens)
        evict_s = costs.evict_s(live, self._num_prompt_pages - owned, self._cluster.hit_share)
        passing_s = self._passing_s(live, queue, compute_s)
        wait_s = self._step_under_way_s(live, queue, work_s)
        cost = Cost(queue_s, fetch_s, compute_s, 0.0, wait_s, evict_s, passing_s=passing_s)
        return self._candidate(live, cost, owned, queue, source)

    def answering(self, live: LiveNode) -> Candidate:
        """Returns `live` as the node that answers; pages of the prompt come from elsewhere."""
        owned = self._owned_pages(live.info.node)
        num_requests, num_pages = self._requests_and_pages(live)
        num_bytes = (self._num_prompt_pages - owned) * self._page_bytes
        transfer_s = costs.move_s(num_bytes, self._link_bytes_per_s)
        waiting = self._cluster.planned.requests.get(live.info.node.name, 0.0)
        wait_s = costs.wait_s(live, num_requests, num_pages, waiting)
        num_new_pages = self._demand.admission_pages - owned
        evict_s = costs.evict_s(live, num_new_pages, self._cluster.hit_share)
        cost = Cost(0.0, 0.0, 0.0, transfer_s, wait_s, evict_s)
        queue = self._cluster.queues.get(live.info.node.name)
        return self._candidate(live, cost, owned, queue, None)

    def both(self, answering: Candidate) -> Candidate:
        """Returns the node as one that does both tasks: nothing is sent, but the chunks of the
        prompt slow down the answers beside it."""
        live, num_running = answering.live, answering.live.load.num_running
        owned = self._reusable_pages(live)
        work_s = costs.chunk_s(live, self._least_tokens(owned))
        queue, queue_s = self._queue(live, work_s)
        spread = costs.spread(live) if num_running else 1.0
        queue_s *= spread
        source, fetch_s, num_tokens = self._fetch(live, owned, queue_s)
        # Steps are needed for answers anyway, so the prompt waits for them, and works only what it
        # adds.
        compute_s = costs.chunk_s(live, num_tokens)
        wait_s = answering.cost.wait_s + live.step_s + (spread - 1.0) * compute_s
        delay_s = num_running * compute_s
        wait_s += self._step_under_way_s(live, queue, work_s)
        passing_s = self._passing_s(live, queue, compute_s)
        evict_s = answering.cost.evict_s
        cost = Cost(queue_s, fetch_s, compute_s, 0.0, wait_s, evict_s, delay_s, passing_s)
        return self._candidate(live, cost, owned, queue, source)

    def _reusable_pages(self, live: LiveNode) -> int:
        """Returns how many leading pages of the prompt the node need not compute."""
        owned = self._owned_pages(live.info.node)
        return owned if owned < self._num_reusable else self._num_reusable

    def _least_tokens(self, owned: int) -> int:
        """Returns how many tokens a node computes that owns so many pages, or fetches them."""
        num_tokens = self._demand.num_tokens - owned * self._page_size
        return min(num_tokens, self._tokens_behind_source)

    def _queue(self, live: LiveNode, work_s: float) -> tuple[NodeQueueEstimate | None, float]:
        """Returns the node's queue, and how long what is in it and what is planned will take before
        the node begins with the prompt, if that takes `work_s`."""
        name, now, planned = live.info.node.name, self._cluster.now, self._cluster.planned
        queue = self._cluster.queues.get(name)
        if not live.info.chunk_tokens:
            queue_s = queue.seconds(now) if queue is not None else 0.0
            return queue, queue_s + planned.seconds_before(name, float("inf"))
        planned_s = planned.seconds_before(name, work_s)
        if queue is None:
            return None, planned_s
        return queue, queue.seconds_before(work_s, now) + planned_s

    def _step_under_way_s(
        self, live: LiveNode, queue: NodeQueueEstimate | None, work_s: float
    ) -> float:
        """Returns how long the prompt waits for the end of a step with longer ones. That is no part
        of the queue: where requests wait for their turn, it is the same."""
        if queue is None or not queue.has_prompts or not live.info.chunk_tokens:
            return 0.0
        now = self._cluster.now
        return costs.step_under_way_s(live, queue.seconds(now) - queue.seconds_before(work_s, now))

    def _passing_s(
        self, live: LiveNode, queue: NodeQueueEstimate | None, compute_s: float
    ) -> float:
        """Returns how much later the longer prompts at the node end together because they let this
        one pass."""
        if queue is None or not queue.has_prompts or not live.info.chunk_tokens:
            return 0.0
        return compute_s * queue.num_longer(compute_s)

    def _fetch(
        self, live: LiveNode, owned: int, queue_s: float
    ) -> tuple[LiveNode | None, float, int]:
        """Returns from whom the node should fetch pages (None: from nobody), how long that takes,
        and how many tokens it then has to compute."""
        num_tokens = self._demand.num_tokens - owned * self._page_size
        if owned >= self._source_pages:
            return None, 0.0, num_tokens
        num_bytes = (self._source_pages - owned) * self._page_bytes
        fetch_s = costs.move_s(num_bytes, self._source_bytes_per_s)
        rest_s = costs.chunk_s(live, self._tokens_behind_source)
        all_s = costs.chunk_s(live, num_tokens)
        if costs.weigh(queue_s, fetch_s, rest_s) < costs.weigh(queue_s, 0.0, all_s):
            return self._source, fetch_s, self._tokens_behind_source
        return None, 0.0, num_tokens

    def _candidate(
        self,
        live: LiveNode,
        cost: Cost,
        owned_pages: int,
        queue: NodeQueueEstimate | None,
        source: LiveNode | None,
    ) -> Candidate:
        num_requests = live.load.num_running + live.load.num_waiting
        work_s = 0.0
        if queue is not None:
            work_s = queue.total_s
            if queue.num_requests > num_requests:
                num_requests = queue.num_requests
        fetch_pages = self._source_pages if source is not None else 0
        return Candidate(
            live, cost, cost.score, owned_pages, num_requests, work_s, source, fetch_pages
        )

    def is_full(self, live: LiveNode) -> bool:
        """Returns True if the request would have to wait for a place or pages of the node."""
        num_requests, num_pages = self._requests_and_pages(live)
        return costs.is_full(live, num_requests, num_pages)

    def leaves_room_for_prompts(self, live: LiveNode) -> bool:
        """Returns True if a prefill node has room for the answer and, after that, a share of its
        pages for what it is there for: a prompt that finds no pages holds up all behind it."""
        num_requests, num_pages = self._requests_and_pages(live)
        kept_pages = int(KEPT_FOR_PROMPTS * live.info.num_pages)
        return not costs.is_full(live, num_requests, num_pages + kept_pages)

    def _requests_and_pages(self, live: LiveNode) -> tuple[int, int]:
        """Returns how many requests of this coordinator the node has, and how many more pages it
        needs for this one, behind those that are promised to others."""
        node = live.info.node
        num_pages = self._demand.admission_pages - self._owned_pages(node)
        num_pages += self._cluster.planned.pages.get(node.name, 0)
        queue = self._cluster.queues.get(node.name)
        if queue is None:
            return 0, num_pages
        return queue.num_requests, num_pages + queue.promised_pages

    def _owned_pages(self, node: Node) -> int:
        """Returns how many leading pages the node has or will have, and need not be sent there."""
        # Expected pages count as owned: they will be there before this prompt is, as prompts are
        # computed in the order in which they were sent. To be fetched, pages must be there now.
        owned = self._owners.expected.get(node, 0)
        return owned if owned < self._num_received else self._num_received

    def _best_source(self) -> tuple[LiveNode | None, int]:
        """Returns the node that owns most of the prompt now, and how many pages; among equals the
        one that does least.

        A node at which an earlier attempt failed is left out: it may be dead while its pages are
        still in the index.
        """
        best, best_pages, best_load = None, 0, 0
        for node, pages in self._owners.owned.items():
            live = self._cluster.find(node)
            if live is None or pages < best_pages or node.name in self._demand.avoid:
                continue
            load = live.load.num_running + live.load.num_waiting
            # Fewer pages were passed over above: here there are more, or as many at another node.
            if pages > best_pages or load < best_load:
                best, best_pages, best_load = live, pages, load
        return best, best_pages


def _others(candidates: list[Candidate], chosen: Candidate) -> list[tuple[float, Candidate]]:
    """Returns the candidates on other nodes with their scores."""
    return [(c.score, c) for c in candidates if c.live is not chosen.live]
