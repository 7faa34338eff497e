"""`Placement`: everything a decision needs, and what follows from it. Pure.

Brings together who owns what (index and claims), what every node has to do (backlogs) and the
router. The replay benchmark drives it with virtual nodes, the tracker with real ones.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field

from coordinator.core.registry import LiveNode, Registry
from coordinator.ownership.index import PrefixIndex
from coordinator.routing.backlog import Backlog
from coordinator.routing.claims import Claims
from coordinator.routing.cost import compute_s, prefill_tokens_per_s
from coordinator.routing.router import (
    NOTHING_PLANNED,
    Candidates,
    Cluster,
    Demand,
    Plan,
    Route,
    Router,
    no_room,
)
from protocol.hashing import PageHash
from protocol.ids import Node, Role

PLACES_AHEAD = 8
"""A decode node is given an eighth more requests than it has places for."""
HIT_SHARE_MEMORY = 0.999
"""What a share of hits keeps of itself with each further request."""


@dataclass(frozen=True)
class Work:
    """A prompt to be placed: its tokens, and the hashes of its full pages."""

    num_tokens: int
    num_pages: int
    """Of prompt and answer together: a node with fewer could never answer."""
    admission_pages: int
    """Those of them that a decode node needs to begin; it finds the others as the answer grows."""
    hashes: list[PageHash]
    avoid: Collection[str] = field(default=())


@dataclass
class _Booking:
    """The backlogs that a request counts in; they are of one life of a node, as its name is not."""

    computing: Backlog
    answering: Backlog
    is_computed: bool = False


class Placement:
    """Books what it dispatches, so that the next decision knows of it."""

    def __init__(self, registry: Registry, index: PrefixIndex, router: Router) -> None:
        self.registry = registry
        self.index = index
        self.draining: frozenset[str] = frozenset()
        """Names of nodes that get no new requests; others may still fetch their pages."""
        self.backlogs: dict[str, Backlog] = {}
        self._router = router
        self._open: dict[Role, tuple[list[LiveNode], frozenset[str], list[LiveNode]]] = {}
        self.num_changes = 0
        """Grows whenever a node may have become free."""
        self._claims = Claims()
        index.on_removed = self._claims.drop
        self._booked: dict[str, _Booking] = {}
        self._hit_pages = 0.0
        self._asked_pages = 0.0

    def route(self, work: Work, now: float, plan: Plan = NOTHING_PLANNED) -> Route:
        """Where `work` would go now, after what is planned to be sent before it. Raises NoRoute."""
        return self._router.route(self._demand(work, now), self._cluster(now, plan))

    def has_room(self, route: Route, admission_pages: int, plan: Plan) -> bool:
        """The decode node of `route` could begin to answer: it has a place and the pages."""
        live = self.registry.get(route.decode)
        if live is None:
            return False
        load, max_running = live.load, live.info.max_running_requests
        # Some wait there for the places that become free; for pages nobody should.
        most = max_running + max(1, max_running // PLACES_AHEAD)
        promised = plan.pages.get(route.decode.name, 0) + self._promised_pages(route.decode)
        num_new_pages = admission_pages - route.decode_pages
        has_pages = num_new_pages <= load.room_pages - promised
        return self._num_requests(live) < most and has_pages

    def may_wait(self, route: Route, plan: Plan) -> bool:
        """The decode node has a place, and nobody waits for its pages: one that waited for them
        too long may do so there, where nobody overtakes it, whichever coordinator sent it."""
        live = self.registry.get(route.decode)
        return (
            live is not None
            and live.load.num_waiting == 0
            and self._promised_pages(route.decode) <= max(0, live.load.room_pages)
            and route.decode.name not in plan.pages
            and self._num_requests(live) < live.info.max_running_requests
        )

    def _promised_pages(self, node: Node) -> int:
        """To requests of this coordinator, which no heartbeat shows yet."""
        backlog = self.backlogs.get(node.name)
        return backlog.promised_pages if backlog is not None else 0

    def _num_requests(self, live: LiveNode) -> int:
        """At a decode node, of all coordinators: as it said, and what came and went since."""
        num_requests = live.load.num_running + live.load.num_waiting
        backlog = self.backlogs.get(live.node.name)
        if backlog is None:
            return num_requests
        return max(num_requests + backlog.num_unheard, backlog.num_requests)

    def require_room(self, work: Work) -> None:
        """Raises NoRoute when no decode node could ever answer."""
        nodes = self.open("decode")
        if not any(work.num_pages <= live.info.num_pages for live in nodes):
            raise no_room(work.num_pages)

    def explain(self, work: Work, now: float) -> tuple[Candidates, Route]:
        """Every candidate with its cost, and the choice; books nothing. Raises NoRoute.

        A copy of the router chooses: it takes no turn and no chance from the requests to come.
        """
        demand = self._demand(work, now)
        candidates = self._router.candidates(demand, self._cluster(now, NOTHING_PLANNED))
        return candidates, copy.deepcopy(self._router).choose(demand, candidates)

    def assess(self, work: Work) -> tuple[float, bool]:
        """Seconds of work that the prompt is with the longest prefix that any node has, and whether
        a decode node would compute it whatever the prefill nodes do: it has nearly all of it, or
        none of them may take it."""
        nodes = self._computing_nodes()
        if not nodes:
            return 0.0, False
        owned = self.index.match(work.hashes)
        page_size = nodes[0].info.layout.page_size
        num_cached = min(max(owned.values(), default=0) * page_size, work.num_tokens - 1)
        work_s = min(compute_s(live, work.num_tokens - num_cached) for live in nodes)
        prefills = self.open("prefill")
        if not prefills:
            return work_s, False
        allowed = [live for live in prefills if live.node.name not in work.avoid]
        decodes = self.open("decode")
        return work_s, self._router.skips_prefill(work.num_tokens, owned, allowed, decodes)

    def book(self, request_id: str, work: Work, route: Route, now: float) -> None:
        """`work` is sent along `route`."""
        assert request_id not in self._booked
        booking = _Booking(self._backlog(route.computes), self._backlog(route.decode))
        self._booked[request_id] = booking
        booking.computing.sent(request_id, route.busy_s, now)
        booking.answering.num_requests += 1
        booking.answering.num_unheard += 1
        booking.answering.promise(request_id, work.admission_pages - route.decode_pages, now)
        if booking.computing is not booking.answering:
            booking.computing.num_requests += 1
        owned = self.index.match(work.hashes)
        for node in {route.computes, route.decode}:
            self._claims.claim(node, work.hashes, owned.get(node, 0), now)
        self._asked_pages = self._asked_pages * HIT_SHARE_MEMORY + len(work.hashes)
        self._hit_pages = self._hit_pages * HIT_SHARE_MEMORY + route.cached_pages

    def computed(self, request_id: str, now: float) -> None:
        """The first token is here, a prefill node's part is done. Harmless twice."""
        booking = self._booked.get(request_id)
        if booking is None or booking.is_computed:
            return
        booking.is_computed = True
        self.num_changes += 1
        booking.computing.computed(request_id, now)
        if booking.computing is not booking.answering:
            booking.computing.num_requests -= 1

    def ended(self, request_id: str, now: float) -> None:
        """The attempt is over, whatever became of it. Harmless twice."""
        self.computed(request_id, now)
        booking = self._booked.pop(request_id, None)
        if booking is not None:
            self.num_changes += 1
            booking.answering.num_requests -= 1
            booking.answering.num_unheard -= 1
            booking.answering.ended(request_id)

    def heard(self, live: LiveNode, now: float) -> None:
        """A heartbeat of this node."""
        queued_s = live.load.queued_tokens / prefill_tokens_per_s(live)
        self._backlog(live.node).heard(queued_s, now)

    def forget(self, node: Node) -> None:
        """A life of a node is over; its requests are ended one by one."""
        self.backlogs.pop(node.name, None)
        self._claims.forget(node)

    def busy_s(self, now: float) -> list[float]:
        """How long each node that computes prompts has something to compute."""
        nodes = self._computing_nodes()
        backlogs = [self.backlogs.get(live.node.name) for live in nodes]
        return [b.seconds(now) if b is not None else 0.0 for b in backlogs]

    def backlog_s(self, node: Node, now: float) -> float:
        """How long its prompts will keep a node busy."""
        backlog = self.backlogs.get(node.name)
        return backlog.seconds(now) if backlog is not None else 0.0

    @property
    def most_pages(self) -> int:
        """Room of the largest decode node that takes requests; 0 without one."""
        nodes = self.open("decode")
        return max((live.info.num_pages for live in nodes), default=0)

    @property
    def hit_share(self) -> float:
        """Of the pages that prompts asked for lately, those that were found."""
        return self._hit_pages / self._asked_pages if self._asked_pages else 0.0

    def _demand(self, work: Work, now: float) -> Demand:
        owned = self.index.match(work.hashes)
        expected = self._claims.extend(work.hashes, owned, now)
        return Demand(
            work.num_tokens, work.num_pages, work.admission_pages, owned, expected, work.avoid
        )

    def _cluster(self, now: float, plan: Plan) -> Cluster:
        return Cluster(
            prefill=self.open("prefill"),
            decode=self.open("decode"),
            find=self.registry.get,
            link_bytes_per_s=self.registry.link_bytes_per_s,
            backlogs=self.backlogs,
            hit_share=self.hit_share,
            plan=plan,
            now=now,
        )

    def open(self, role: Role) -> list[LiveNode]:
        """Live nodes of a role that get new requests."""
        nodes = self.registry.live(role)
        if not self.draining:
            return nodes
        of_nodes, of_draining, opened = self._open.get(role, ([], self.draining, []))
        if of_nodes is not nodes or of_draining != self.draining:
            opened = [live for live in nodes if live.node.name not in self.draining]
            self._open[role] = (nodes, self.draining, opened)
        return opened

    def _computing_nodes(self) -> list[LiveNode]:
        prefill = self.open("prefill")
        return prefill or self.open("decode")

    def _backlog(self, node: Node) -> Backlog:
        if node.name not in self.backlogs:
            least_s = min((b.total_s for b in self.backlogs.values()), default=0.0)
            self.backlogs[node.name] = Backlog(least_s)
        return self.backlogs[node.name]
