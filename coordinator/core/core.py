"""`CoordinatorCore`: everything that a coordinator decides. Pure.

It is told what happens (a request, a message, time that passes) and answers with instructions for
its shell, in the order in which they are to be carried out. The clock, chance and new ids are
given; it knows no socket, no HTTP and no Redis.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator
from itertools import chain

from coordinator.admission.limits import Limits, Refusal, too_many, whole_seconds
from coordinator.admission.turns import Turns
from coordinator.answers.answer import Answer
from coordinator.answers.request import Request
from coordinator.config import CoordinatorConfig
from coordinator.core.demands import DemandMaker
from coordinator.core.errors import DuplicateRequest, EndsNodes, TooBusy, Unavailable
from coordinator.core.instructions import AnswerStarted, Forget, Instruction, Send
from coordinator.core.pause import Pause
from coordinator.core.request_reports import reports
from coordinator.core.shared_path import SharedPath
from coordinator.core.statistics import Statistics
from coordinator.core.tracked_request import TrackedRequest
from coordinator.core.tracker import Tracker
from coordinator.events.changes import ClusterChanges
from coordinator.events.event_log import EventKind
from coordinator.leaving.taking_over import AnsweredBefore
from coordinator.metrics import table
from coordinator.ownership.index import PrefixIndex
from coordinator.routing.dispatch import DispatchQueue
from coordinator.routing.nodes_room import NodesRoom
from coordinator.routing.placement import Placement
from coordinator.routing.policies import POLICIES
from coordinator.routing.registry import Registry
from coordinator.routing.route import NoRoute, Route
from coordinator.routing.router import Candidates, Router
from coordinator.timelines.ended_requests import ReportableRequest
from protocol.ids import Node
from protocol.messages import (
    COORDINATOR_LEASE_S,
    AbortRequest,
    AnyMessage,
    AskCounts,
    AskRequests,
    CoordinatorAlive,
    CoordinatorGoodbye,
    CountsReply,
    Failed,
    Generate,
    Goodbye,
    Heartbeat,
    Message,
    NodeInfo,
    PauseSeen,
    RefuseContent,
    RequestsReply,
    SetPause,
    TokensOut,
)
from protocol.timelines.request_reports import RequestFilter, RequestReport

log = logging.getLogger(__name__)

CHECK_EVERY_S = 0.05
"""How often leases, deadlines and requests without a node are looked at."""
ALIVE_EVERY_S = COORDINATOR_LEASE_S / 6
READY_WITHOUT_NODE_S = 15.0
"""A cluster counts as ready so long after its last node has left: a restart is no outage."""
NO_NODE = (
    "no node takes requests: none is alive, or all are draining; `kvrelay stats` lists the "
    "nodes, and GET /ready answers 200 as soon as one serves"
)


class CoordinatorCore:
    """Decides; its caller tells it what happens and carries out what it returns.

    The caller must call `tick` at `wake_at` at the latest, and ask for `wake_at` again after every
    batch of messages: room that became free is given to waiting requests by the next `tick`.
    """

    def __init__(
        self,
        settings: CoordinatorConfig,
        address: str,
        chance: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        """`address` is where nodes send their messages to this coordinator. `chance` gives numbers
        in [0, 1) and `new_id` ids of requests. A deep copy of `chance` must have its own state, so
        it is no bound method: `explain` draws from a copy."""
        self.registry = Registry()
        self.index = PrefixIndex()
        self.statistics = Statistics(self.registry)
        self.changes = ClusterChanges()
        policy = POLICIES[settings.policy](chance)
        router = Router(policy)
        self.placement = Placement(self.registry, self.index, router)
        self._room = NodesRoom(self.placement)
        self._settings = settings
        self._address = address
        self._new_id = new_id
        self._demands = DemandMaker(self.registry)
        self._queue = DispatchQueue(self.placement, policy.binds_late)
        self._binds_late = policy.binds_late
        self._limits = Limits(settings.max_ttft, settings.max_wait_s)
        self._tracker = Tracker(
            self.placement, self._queue, self._demands, self.statistics, address, self._limits
        )
        self.pause = Pause()
        """The newest state of the cluster that is known here."""
        self._next_check_at = 0.0
        self._next_alive_at = 0.0
        self.last_tokens_at = -math.inf
        """When a node sent tokens last, of whatever request."""
        self._is_dispatch_due = False
        """Something has happened since the dispatch queue was looked at."""
        self._heard_at: dict[Node, float] = {}
        """When each live node was heard last."""
        self._served_at = -math.inf
        """When a node took requests last."""
        self._waits_for_nodes = False
        """No node takes requests, and one did so a moment ago: requests wait for its return."""
        self._known_tokens = self._known_room = 0
        """`max_total_tokens` and the nodes' part of `max_unfinished` when a node took requests
        last."""
        self._why_stopped = ""
        """Why no request is taken any more; "" as long as some are."""

    @property
    def turns(self) -> Turns:
        """The work of those who wait or were sent and have not ended, by tenants."""
        return self._queue.turns

    @property
    def num_unfinished(self) -> int:
        """The number of requests that have not ended, whether they run or wait."""
        return len(self._tracker)

    @property
    def num_waiting(self) -> int:
        """The number of requests that are not bound to a node."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """The number of requests that were sent to nodes and have not ended."""
        return self.num_unfinished - self.num_waiting

    def num_in_stages(self) -> dict[str, int]:
        """Returns how many unfinished requests are in each stage."""
        return self._tracker.num_in_stages()

    @property
    def is_ready(self) -> bool:
        """True if a request would find a node that takes it."""
        return bool(self.placement.open())

    def serves(self, now: float) -> bool:
        """Returns True if requests are taken: a node is there for them, or was a moment ago."""
        return self.is_ready or now < self._served_at + READY_WITHOUT_NODE_S

    @property
    def max_total_tokens(self) -> int:
        """The most tokens, prompt and answer together, that one of the nodes has room for."""
        if self._waits_for_nodes and not self.is_ready:
            return self._known_tokens
        return self._room.max_tokens

    @property
    def max_unfinished(self) -> int:
        """The most requests that are kept at once; more are refused. A policy that lets none wait
        here needs nodes that take them all."""
        if self._binds_late:
            return self._settings.max_queued_requests
        is_waiting = self._waits_for_nodes and not self.is_ready
        room = self._known_room if is_waiting else self._room.num_requests
        return min(room, self._settings.max_queued_requests)

    def submit(
        self,
        request: Request,
        now: float,
        before: AnsweredBefore | None = None,
        is_next: bool = False,
    ) -> list[Instruction]:
        """Starts a request. The first instruction is the `AnswerStarted` with its answer. With
        `before` it is one that another coordinator had begun.

        `is_next`: it came with others that were let in, and may wait for them as long as it
        takes; so may one that had begun. Raises one of the kinds of RequestRefused, and then keeps
        nothing of the request.
        """
        # The id is ours, so that a rid that is used again never meets messages of its earlier use.
        answer = Answer(request, self._new_id(), now)
        if self._tracker.has_rid(answer.rid):
            raise DuplicateRequest(f"a request with rid {answer.rid!r} is running")
        if self._tracker.refused.has(request, now):
            raise EndsNodes(
                "nodes ended while they computed a request with this prompt and these parameters; "
                "such requests are refused for an hour"
            )
        self.require_ready()
        if is_next or before is not None:
            self._require_place(None, now)
        else:
            self.require_turn(request.tenant, request.priority, now)

        def require_in_time(work_s: float) -> None:
            self.require_turn(request.tenant, request.priority, now, work_s)

        try:
            if before is not None:
                return [AnswerStarted(answer), *self._tracker.take_over(answer, before, now)]
            instructions = self._tracker.submit(answer, now, None if is_next else require_in_time)
            return [AnswerStarted(answer), *instructions]
        except NoRoute as error:
            raise Unavailable(str(error)) from None

    def require_turn(self, tenant: str, priority: int, now: float, work_s: float = 0.0) -> None:
        """Raises Unavailable or TooBusy if a request of this tenant has no place, or would get its
        turn too late, when its prompt takes at least `work_s` to compute."""
        self.require_ready()
        self._require_place(tenant, now)
        if self.pause.is_paused:
            return
        wait_s = self._queue.wait_s(tenant, priority, now)
        self._refuse(self._limits.too_late(wait_s, work_s), now)

    def _require_place(self, tenant: str | None, now: float) -> None:
        """Raises TooBusy if there is no place, or, with a `tenant`, none for it."""
        shares = self.turns.shares
        of_tenant = 0 if tenant is None else shares.num_unfinished(tenant)
        reason = too_many(self.num_unfinished, of_tenant, self.max_unfinished)
        if reason:
            wait_s = self._queue.wait_s(tenant or "", 0, now)
            self._refuse(Refusal(reason, whole_seconds(wait_s)), now)

    def _refuse(self, refusal: Refusal | None, now: float) -> None:
        if refusal is None:
            return
        self.statistics.request_refused(now)
        message = f"{refusal.reason}; come back in {refusal.retry_after_s} s"
        raise TooBusy(message, refusal.retry_after_s)

    def require_ready(self) -> None:
        """Raises Unavailable if no node takes requests, nor did so a moment ago, or if this
        coordinator takes none."""
        if self._why_stopped:
            raise Unavailable(self._why_stopped)
        if not self.is_ready and not self._waits_for_nodes:
            raise Unavailable(NO_NODE)

    def cancel(self, request_id: str, now: float) -> list[Instruction]:
        """Ends a request that nobody waits for any more, on every node. Does nothing if it has
        ended."""
        self._is_dispatch_due = True
        return self._tracker.cancel(request_id, now)

    def abort(self, rid: str, abort_all: bool, now: float) -> list[Instruction]:
        """Ends the requests of this coordinator that go by the name `rid`, or all of them, with
        what they have answered so far."""
        self._is_dispatch_due = True
        return self._tracker.abort(rid, abort_all, now)

    def stop(self, reason: str, now: float) -> list[Instruction]:
        """Ends all requests with the error `reason`, refuses those that come after, and tells the
        nodes that this coordinator ends."""
        self._why_stopped = reason
        goodbye = CoordinatorGoodbye(self._address)
        goodbyes = [Send(live.info.control_address, goodbye) for live in self.registry.live()]
        return [*self._tracker.end_all(reason, now), *goodbyes]

    def set_pause(self, pause: Pause, now: float) -> list[Instruction]:
        """Pauses generation or goes on with it. Does nothing if a newer state is known."""
        if pause.number <= self.pause.number:
            return []
        was_paused, self.pause = self.pause.is_paused, pause
        log.info("generation %s", f"is paused: {pause.mode}" if pause.is_paused else "goes on")
        instructions: list[Instruction] = []
        if pause.mode == "abort":
            instructions += self._tracker.abort("", True, now)
        if pause.is_paused and not was_paused:
            self.changes.paused(pause.mode or "", now)
            instructions += self._tracker.pause(now)
        elif was_paused and not pause.is_paused:
            self.changes.continued(now)
            instructions += self._tracker.resume(now)
        return instructions

    def handle(self, message: AnyMessage, now: float) -> list[Instruction]:
        """Takes a message of a node or of another coordinator. Messages that do not concern the
        core change nothing."""
        self._is_dispatch_due = True
        if isinstance(message, TokensOut):
            self.last_tokens_at = now
            return self._tracker.tokens(message, now)
        if isinstance(message, Heartbeat):
            return self._heard(message, now)
        if isinstance(message, Failed):
            log.warning("attempt %s failed: %s", message.attempt, message.reason)
            return self._tracker.failed(message, now)
        if isinstance(message, Goodbye):
            # One that was told to stop died of nothing; of all others the last sign is this one.
            alive_at = -math.inf if message.is_planned else now
            if not message.is_planned:
                self.statistics.requests.measures.count(table.LEASES_LOST)
            how: EventKind = "left" if message.is_planned else "died"
            return self._lost(self.registry.remove(message.node), how, now, alive_at)
        if isinstance(message, RefuseContent):
            self._tracker.refused.add(message.digest, now)
            return []
        if isinstance(message, AbortRequest):
            return self.abort(message.rid, message.abort_all, now)
        if isinstance(message, SetPause):
            instructions = self.set_pause(Pause(message.number, message.mode), now)
            seen = PauseSeen(message.question_id, self._address)
            return [*instructions, Send(message.reply_address, seen)]
        if isinstance(message, AskCounts):
            return [Send(message.reply_address, self.counts(now, message.question_id))]
        if isinstance(message, AskRequests):
            found = self.requests(message.wanted, now)
            reply = RequestsReply(message.question_id, self._address, found)
            return [Send(message.reply_address, reply)]
        return []

    def counts(self, now: float, question_id: str = "") -> CountsReply:
        """Returns what this coordinator has counted, as the answer to a question for it."""
        totals = self.statistics.totals
        return CountsReply(
            question_id,
            self._address,
            totals.lifetime,
            totals.recent(now),
            self.num_running,
            self.num_waiting,
        )

    def requests(self, wanted: RequestFilter, now: float) -> list[RequestReport]:
        """Returns what is known of the requests of this coordinator that are wanted: unfinished
        ones first, then those that ended lately; the newest of each first."""
        unfinished, ended = self.unfinished(), self.statistics.ended_requests
        both = chain(unfinished, ended.newest_first(now))
        return reports(both, wanted, self._address, now)

    def unfinished(self, oldest_first: bool = False) -> Iterator[ReportableRequest]:
        """Returns what can be told of the requests that have not ended, the youngest first unless
        `oldest_first`."""
        return self._tracker.oldest_first() if oldest_first else self._tracker.newest_first()

    def sent(self, message: Message, now: float) -> None:
        """Notes that the message of a `Send` is about to leave."""
        if isinstance(message, Generate):
            self._tracker.sent(message.attempt, now)

    def undeliverable(self, address: str, message: Message, now: float) -> list[Instruction]:
        """Handles the news that the message of a `Send` could not be queued for `address`."""
        self._is_dispatch_due = True
        if isinstance(message, Generate):
            return self._tracker.undeliverable(message.attempt, now)
        return []

    def set_draining(self, names: Collection[str], now: float) -> None:
        """Stops giving new requests to the nodes with these names; all others get them (again)."""
        if names != self.placement.draining:
            self.placement.draining = frozenset(names)
            self.changes.drains(names, now)
            self._is_dispatch_due = True

    def tick(self, now: float) -> list[Instruction]:
        """Does what is due by now: ends leases, requests that took too long, and waits before
        retries; sends what nodes have room for."""
        self._note_nodes(now)
        instructions: list[Instruction] = []
        if now >= self._next_check_at:
            self._next_check_at = now + CHECK_EVERY_S
            for info in self.registry.expire(now):
                self.statistics.requests.measures.count(table.LEASES_LOST)
                # It may be cut off, or its host may be gone: a node that ends of a request has a
                # companion that says so.
                instructions += self._lost(info, "lease_lost", now, -math.inf)
            instructions += self._tracker.retry(now)
            instructions += self._tracker.time_out(self._settings.request_timeout_s, now)
            instructions += self._tell_alive(now)
        self._is_dispatch_due = False
        return instructions + self._tracker.dispatch(now)

    def wake_at(self, now: float) -> float | None:
        """Returns the time by which `tick` must be called; None if that can wait until something
        happens."""
        if self.pause.is_paused:
            return self._next_check_at
        # Room may have become free since the last look.
        if self._is_dispatch_due and len(self._queue):
            return now
        if not self.num_unfinished and not self.registry.live():
            return None
        wait_s = self._queue.dispatch_in_s(now)
        return self._next_check_at if wait_s is None else min(self._next_check_at, now + wait_s)

    def explain(self, request: Request, now: float) -> tuple[Candidates, Route, SharedPath]:
        """Returns what routing would do with a request now: all candidates and the choice, and how
        far its prompt is cached anywhere. Keeps nothing. Raises Unavailable."""
        if not self.is_ready:
            raise Unavailable(NO_NODE)
        try:
            demand = self._demands.demand_of(TrackedRequest(Answer(request, "", now)))
            candidates, route = self.placement.explain(demand, now)
            return candidates, route, self._demands.shared_path(demand.hashes, self.index)
        except NoRoute as error:
            raise Unavailable(str(error)) from None

    def _heard(self, message: Heartbeat, now: float) -> list[Instruction]:
        replaced = self.registry.heartbeat(message, now)
        instructions: list[Instruction] = []
        if self._demands.model_has_changed():
            instructions += self._tracker.hash_again(now)  # before anything is sent
        instructions += self._lost(replaced, "replaced", now)
        live = self.registry.get(message.info.node)
        if live is not None:
            self.placement.heard(live, now)
            self._heard_at[live.node] = now
            self.changes.node_heard(live.node, live.load.role, now)
            instructions += self._tracker.node_heard(live.node)
        self._note_nodes(now)
        return instructions

    def _note_nodes(self, now: float) -> None:
        """Notes what nodes take requests now."""
        if self.is_ready:
            self._waits_for_nodes = False
            self._served_at = now
            self._known_tokens, self._known_room = self.max_total_tokens, self.max_unfinished
        else:
            self._waits_for_nodes = self.serves(now)

    def _lost(
        self,
        info: NodeInfo | None,
        how: EventKind,
        now: float,
        was_alive_at: float | None = None,
    ) -> list[Instruction]:
        """Ends what concerned an incarnation of a node that is over; `was_alive_at`: when it was
        known to live, unless that is its last heartbeat. Messages that are still queued for it are
        dropped, so that they do not reach the next one at the same address."""
        if info is None:
            return []
        self._note_nodes(now)
        self.changes.node_gone(info.node, how, now)
        heard_at = self._heard_at.pop(info.node, -math.inf)
        alive_at = heard_at if was_alive_at is None else was_alive_at
        instructions = self._tracker.node_lost(info.node, now, alive_at)
        return [Forget(info.control_address), *instructions]

    def _tell_alive(self, now: float) -> list[Instruction]:
        """Tells all nodes, now and then, that this coordinator still waits for its requests."""
        if now < self._next_alive_at or self._why_stopped:
            return []
        self._next_alive_at = now + ALIVE_EVERY_S
        alive = CoordinatorAlive(self._address, COORDINATOR_LEASE_S)
        return [Send(live.info.control_address, alive) for live in self.registry.live()]
