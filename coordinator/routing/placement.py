"""`Placement`: everything a decision needs, and what follows from it. Pure.

Brings together who owns what (index and expected pages), how busy every node is (queues) and the
router. The replay benchmark drives it with virtual nodes, the tracker with real ones.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

from coordinator.ownership.index import PrefixIndex
from coordinator.routing.demand import Demand, PageOwners
from coordinator.routing.expected_pages import ExpectedPages
from coordinator.routing.node_queue import Booking, NodeQueueEstimate
from coordinator.routing.prices.figures import NodeFigures
from coordinator.routing.prices.planned import NOTHING_PLANNED, PlannedWork
from coordinator.routing.prices.pricing import Cluster
from coordinator.routing.prices.terms import compute_s
from coordinator.routing.registry import LiveNode, Registry
from coordinator.routing.route import Route, no_room
from coordinator.routing.routed_request import RoutedRequest
from coordinator.routing.router import Candidates, Router
from protocol.hashing import PageHash
from protocol.ids import Node, Role

PLACES_AHEAD = 8
"""A decode node is given an eighth more requests than it has places for."""
HIT_SHARE_MEMORY = 0.999
"""What a share of hits keeps of itself with each further request."""


class Placement:
    """Routes requests, and books what is dispatched, so that the next decision reckons with it."""

    def __init__(self, registry: Registry, index: PrefixIndex, router: Router) -> None:
        self.registry = registry
        self.index = index
        self.draining: frozenset[str] = frozenset()
        """Names of nodes that get no new requests; others may still fetch their pages."""
        self.queues: dict[str, NodeQueueEstimate] = {}
        self._router = router
        self._open: dict[Role | None, tuple[list[LiveNode], frozenset[str], list[LiveNode]]] = {}
        self.num_changes = 0
        """Grows whenever a node may have become free."""
        self._expected = ExpectedPages()
        """Pages that nodes will own, because requests were sent there."""
        self._told = ExpectedPages()
        """Pages that nodes own, as the tokens tell that they sent: a node commits pages before.
        The record of ownership in Redis tells the same, perhaps later."""
        index.on_removed = self._removed
        self._figures_by_role: dict[Role, NodeFigures] = {}
        registry.on_told = self._changed
        self._hit_pages = 0.0
        self._asked_pages = 0.0

    def route(self, demand: Demand, now: float, planned: PlannedWork = NOTHING_PLANNED) -> Route:
        """Returns where a request would go now, if what is `planned` is sent before it. Raises
        NoRoute."""
        owners = self._owners(demand, now)
        return self._router.route(demand, owners, self._cluster(now, planned))

    def has_room(self, route: Route, admission_pages: int, planned: PlannedWork) -> bool:
        """Returns True if the decode node of `route` could begin to answer: it has a place and the
        pages."""
        live = self.registry.get(route.decode)
        if live is None:
            return False
        load, max_running = live.load, live.info.max_running_requests
        # Some wait there for the places that become free; for pages nobody should.
        most = max_running + max(1, max_running // PLACES_AHEAD)
        promised = planned.pages.get(route.decode.name, 0) + self._promised_pages(route.decode)
        num_new_pages = admission_pages - route.decode_pages
        has_pages = num_new_pages <= load.room_pages - promised
        return self._num_requests(live) < most and has_pages

    def may_wait(self, route: Route, planned: PlannedWork) -> bool:
        """Returns True if the decode node has a place and nobody waits for its pages.

        A request that has waited too long for pages may then wait at the node, where nobody
        overtakes it, whichever coordinator sent it.
        """
        live = self.registry.get(route.decode)
        return (
            live is not None
            and live.load.num_waiting == 0
            and self._promised_pages(route.decode) <= max(0, live.load.room_pages)
            and route.decode.name not in planned.pages
            and self._num_requests(live) < live.info.max_running_requests
        )

    def _promised_pages(self, node: Node) -> int:
        """Returns how many pages of the node are promised to requests of this coordinator and do
        not show in its heartbeats yet."""
        queue = self.queues.get(node.name)
        return queue.promised_pages if queue is not None else 0

    def _num_requests(self, live: LiveNode) -> int:
        """Returns how many requests a decode node has, of all coordinators: those that its last
        heartbeat told, and what this coordinator has sent and ended since."""
        num_requests = live.load.num_running + live.load.num_waiting
        queue = self.queues.get(live.node.name)
        if queue is None:
            return num_requests
        return max(num_requests + queue.num_unheard, queue.num_requests)

    def require_room(self, demand: Demand) -> None:
        """Raises NoRoute if every node is too small to ever answer."""
        if demand.num_pages > self.most_pages:
            raise no_room(demand.num_pages)

    def explain(self, demand: Demand, now: float) -> tuple[Candidates, Route]:
        """Returns every candidate with its cost, and the choice. Books nothing. Raises NoRoute.

        A copy of the router makes the choice, so that no turn and no chance is taken from the
        requests to come.
        """
        owners = self._owners(demand, now)
        candidates = self._router.candidates(demand, owners, self._cluster(now, NOTHING_PLANNED))
        return candidates, copy.deepcopy(self._router).choose(demand, candidates)

    def assess(self, demand: Demand, now: float) -> tuple[float, bool]:
        """Returns the least time that the prompt takes to compute, from the longest prefix that any
        node has, and whether prefill nodes do not matter to it: there are some, and none may take
        it."""
        nodes = self._computing_figures()
        if not nodes:
            return 0.0, False
        num_tokens = self.tokens_to_compute(demand, now)
        work_s = min(float(compute_s(one.all, max(num_tokens, 1)).min()) for one in nodes)
        prefills = self.open("prefill")
        may_take_it = (
            live.info.layout.num_pages(demand.num_tokens) <= live.info.num_pages
            and live.node.name not in demand.avoid
            for live in prefills
        )
        return work_s, bool(prefills) and not any(may_take_it)

    def tokens_to_compute(self, demand: Demand, now: float) -> int:
        """Returns how many tokens of a prompt are behind the longest prefix that any node has."""
        model = self.registry.model
        if model is None:
            return demand.num_tokens
        owned = self._owners(demand, now).owned
        num_cached = max(owned.values(), default=0) * model.layout.page_size
        return demand.num_tokens - min(num_cached, demand.num_reusable)

    @property
    def prompt_tokens_per_s(self) -> float:
        """How fast all nodes together compute prompts, if they do nothing else."""
        return sum(float(one.all.prefill_tokens_per_s.sum()) for one in self._computing_figures())

    def book(self, routed: RoutedRequest, route: Route, now: float) -> None:
        """Notes that a request is sent along `route`."""
        assert routed.booking is None
        demand = routed.demand
        num_new_pages = demand.admission_pages - route.decode_pages
        booking = routed.booking = Booking(route.busy_s, num_new_pages, now)
        computing = routed.computing = self._queue_of(route.computes)
        answering = routed.answering = self._queue_of(route.decode)
        # One booking is in both queues: its work in that of the computing node, its pages in that
        # of the decode node. If one node does both, its request counts once.
        computing.sent(booking)
        answering.num_requests += 1
        answering.num_unheard += 1
        answering.promise(booking)
        if computing is not answering:
            computing.num_requests += 1
        owned = demand.owned_pages(self.index)
        for node in {route.computes, route.decode}:
            self._changed(node.name)
            self._expected.add(node, demand.hashes, owned.get(node, 0), now)
        self._asked_pages = self._asked_pages * HIT_SHARE_MEMORY + len(demand.hashes)
        self._hit_pages = self._hit_pages * HIT_SHARE_MEMORY + route.cached_pages

    def computed(self, routed: RoutedRequest, now: float) -> None:
        """Notes that the prompt is computed, as its first token is here. Does nothing the second
        time."""
        if routed.booking is None or routed.computing is None:
            return
        self.num_changes += 1
        routed.computing.computed(routed.booking, now)
        self._changed(routed.computing.name)
        if routed.computing is not routed.answering:
            routed.computing.num_requests -= 1
        routed.computing = None

    def ended(self, routed: RoutedRequest, now: float) -> None:
        """Notes that the attempt is over, whatever became of it. Does nothing the second time."""
        self.computed(routed, now)
        if routed.booking is None or routed.answering is None:
            return
        self.num_changes += 1
        routed.answering.num_requests -= 1
        routed.answering.num_unheard -= 1
        routed.answering.ended(routed.booking)
        self._changed(routed.answering.name)
        routed.booking = routed.answering = None

    def failed(self, routed: RoutedRequest, route: Route, now: float) -> None:
        """Notes that the attempt along `route` is over and has failed: its pages are expected at
        its nodes no more. What these told that they have still counts."""
        for node in {route.computes, route.decode}:
            self._expected.drop(node, routed.demand.hashes)
        self.ended(routed, now)

    def has_prompt(self, node: Node, demand: Demand, now: float) -> None:
        """Notes that a node has all full pages of a prompt, as `owns` does."""
        self._told.add(node, demand.hashes, demand.owned_pages(self.index).get(node, 0), now)

    def owns(self, node: Node, hashes: Sequence[PageHash], now: float) -> None:
        """Notes that a node has all of these pages, which its record in Redis may not tell yet."""
        num_known = self.index.match(hashes).get(node, 0)
        self._told.add(node, hashes, num_known, now)

    def heard(self, live: LiveNode, now: float) -> None:
        """Notes what a heartbeat of this node says of its queue."""
        queued_s = live.load.queued_tokens / live.prefill_tokens_per_s
        self._queue_of(live.node).heard(queued_s, now)
        self._changed(live.node.name)

    def forget(self, node: Node) -> None:
        """Forgets an incarnation of a node that is over; its requests are ended one by one."""
        self.queues.pop(node.name, None)
        self._changed(node.name)
        self._expected.forget(node)
        self._told.forget(node)

    def busy_s(self, now: float) -> list[float]:
        """Returns how long their queues will keep the nodes busy that compute prompts, of those
        with something in them."""
        computing = self._computing_figures()
        return [queue.seconds(now) for one in computing for queue in one.busy.values()]

    def free_in_s(self, now: float) -> float:
        """Returns how long it takes until a node that computes prompts has nothing to do; 0 without
        nodes."""
        if any(len(one.busy) < len(one) for one in self._computing_figures()):
            return 0.0
        return min(self.busy_s(now), default=0.0)

    def begins_within(self, wait_s: float, now: float) -> float:
        """Returns below which length, in seconds of work, some node would begin with a prompt
        within `wait_s`; infinity if it would with any, 0 without nodes."""
        computing = self._computing_figures()
        if any(len(one.busy) < len(one) for one in computing):
            return float("inf")
        longest_s = 0.0
        for one in computing:
            for place, queue in one.busy.items():
                if queue.seconds(now) <= wait_s:
                    return float("inf")
                if one.nodes[place].info.chunk_tokens:
                    longest_s = max(longest_s, queue.begins_within(wait_s, now))
        return longest_s

    def queue_s(self, node: Node, now: float) -> float:
        """Returns how long the prompts that a node has will keep it busy."""
        queue = self.queues.get(node.name)
        return queue.seconds(now) if queue is not None else 0.0

    @property
    def most_pages(self) -> int:
        """The number of pages of the largest node that takes requests; 0 without one."""
        return max((live.info.num_pages for live in self.open()), default=0)

    @property
    def hit_share(self) -> float:
        """The share of pages that were found in a cache, of those that prompts asked for lately."""
        return self._hit_pages / self._asked_pages if self._asked_pages else 0.0

    def _owners(self, demand: Demand, now: float) -> PageOwners:
        version = self.index.version, self._told.version(now), self._expected.version(now)
        if demand.owners is None or demand.owners[0] != version:
            owned = self._told.extend(demand.hashes, demand.owned_pages(self.index), now)
            expected = self._expected.extend(demand.hashes, owned, now)
            demand.owners = version, PageOwners(owned, expected)
        return demand.owners[1]

    def _removed(self, node: Node, hashes: Collection[PageHash]) -> None:
        self._expected.drop(node, hashes)
        self._told.drop(node, hashes)

    def _cluster(self, now: float, planned: PlannedWork) -> Cluster:
        return Cluster(
            prefill=self._figures("prefill"),
            decode=self._figures("decode"),
            find=self.registry.get,
            link_bytes_per_s=self.registry.link_bytes_per_s,
            hit_share=self.hit_share,
            planned=planned,
            now=now,
        )

    def open(self, role: Role | None = None) -> list[LiveNode]:
        """Returns the live nodes that get new requests, of one role or of both."""
        nodes = self.registry.live(role)
        if not self.draining:
            return nodes
        of_nodes, of_draining, opened = self._open.get(role, ([], self.draining, []))
        if of_nodes is not nodes or of_draining != self.draining:
            opened = [live for live in nodes if live.node.name not in self.draining]
            self._open[role] = (nodes, self.draining, opened)
        return opened

    def _changed(self, name: str) -> None:
        """Notes that a node has told something of itself, or that its queue has changed."""
        for figures in self._figures_by_role.values():
            figures.changed(name)

    def _figures(self, role: Role) -> NodeFigures:
        """Returns what prices depend on of the nodes of a role that get new requests, as it is
        now."""
        nodes = self.open(role)
        figures = self._figures_by_role.get(role)
        if figures is None or figures.nodes is not nodes:
            figures = self._figures_by_role[role] = NodeFigures(nodes, self.queues)
        figures.refresh()
        return figures

    def _computing_figures(self) -> list[NodeFigures]:
        """Returns the figures of the nodes that compute prompts, without those of no node."""
        found = [self._figures("prefill"), self._figures("decode")]
        found = [one for one in found if len(one)]
        return found if self._router.mixes_work else found[:1]

    @property
    def num_computing(self) -> int:
        """How many nodes compute prompts."""
        return sum(len(one) for one in self._computing_figures())

    def _queue_of(self, node: Node) -> NodeQueueEstimate:
        if node.name not in self.queues:
            # A node that joins late must not get every tie until it has caught up.
            least_s = min((b.total_s for b in self.queues.values()), default=0.0)
            self.queues[node.name] = NodeQueueEstimate(least_s, node.name)
        return self.queues[node.name]
