"""`Tracker`: every running request, and the one place that retries. Pure.

A request waits in the dispatch queue until it is bound to nodes. It has attempts; only messages of
the newest one count. When a node fails, the next attempt sends the prompt plus the tokens answered
so far, so the client's stream goes on. Each request ends with exactly one `Ended`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from coordinator.routing.dispatch import DispatchQueue
from coordinator.routing.placement import Placement, Work
from coordinator.routing.router import NoRoute, Route
from protocol.hashing import PageHash, token_bytes
from protocol.ids import Attempt, Node
from protocol.messages import Cancel, Failed, Generate, Message, TokenOut, TokensOut
from protocol.namespace import Namespace
from protocol.sampling import Sampling, TokenLogprobs

MAX_FAILURES = 4
"""Nodes that may fail one request before it fails."""
RETRY_WITHIN_S = 10.0
"""A request without a node waits so long for one to appear, or to have room."""
BUSY_RETRY_S = 0.5
"""When every node's queue is full, each is asked again after so long."""

NODE_FAILED = 503
TOO_BUSY = 429
BAD_REQUEST = 400


@dataclass(frozen=True)
class Request:
    """One prompt to answer, validated and tokenized."""

    request_id: str
    tokens: list[int]
    namespace: Namespace
    sampling: Sampling
    max_new_tokens: int
    stop_token_ids: list[int]


@dataclass(frozen=True)
class Send:
    """Send a message to a node."""

    address: str
    message: Message


@dataclass(frozen=True)
class Produced:
    """New tokens of a request."""

    request_id: str
    request: Request
    hashes: list[PageHash]
    """Of the full pages of its prompt."""
    tokens: list[int]
    attempt: int
    route: Route
    cached_tokens: int
    fetched_tokens: int
    transferred_pages: int
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """One for each of `tokens`, if the request asks for them."""


@dataclass(frozen=True)
class Ended:
    """The end of a request. `finish` is "stop", "length" or "error"."""

    request_id: str
    finish: str
    message: str = ""
    status_code: int = 200
    attempts: int = 0


@dataclass(frozen=True)
class Stray:
    """A node works on an attempt that nobody waits for."""

    attempt: Attempt
    node: Node


Outcome = Send | Produced | Ended | Stray


@dataclass(eq=False)
class _Running:
    request: Request
    arrived: float
    work: Work | None
    """The prompt, with what was answered so far; None: to be made when there is a node."""
    attempt: int = 0
    route: Route | None = None
    """None: it waits for a node."""
    answered: list[int] = field(default_factory=list)
    num_answered_before: int = 0
    """Of `answered`, by earlier attempts."""
    avoid: set[str] = field(default_factory=set)
    """Nodes that failed it or were too busy."""
    num_failures: int = 0
    last_failure: str = ""
    status_code: int = NODE_FAILED
    """What the last failure makes of it if it has to end."""
    started_at: float = 0.0
    """When the current attempt was sent."""
    retry_at: float = 0.0
    give_up_at: float | None = None
    """When a request gives up that no node can take. Set by a failure, by the first of several
    busy replies in a row, or when there is no node; cleared by a token."""
    answering: bool = False
    """A token of the current attempt has arrived: its prompt is computed."""

    @property
    def current(self) -> Attempt:
        return Attempt(self.request.request_id, self.attempt)


WorkFunction = Callable[[list[int], Namespace, int, Collection[str]], Work]
"""(tokens, namespace, max_new_tokens, nodes to avoid) → what is to be placed."""


class Tracker:
    """`make_work` hashes prompts; `reply_address` is where nodes send this coordinator's tokens."""

    def __init__(
        self,
        placement: Placement,
        queue: DispatchQueue,
        make_work: WorkFunction,
        reply_address: str,
    ) -> None:
        self._placement = placement
        self._queue = queue
        self._make_work = make_work
        self._reply_address = reply_address
        self._running: dict[str, _Running] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._running

    @property
    def num_waiting(self) -> int:
        """Requests in the dispatch queue."""
        return len(self._queue)

    def submit(self, request: Request, now: float) -> list[Outcome]:
        """Starts a request; raises NoRoute (and keeps nothing) when no node can take it."""
        assert request.request_id not in self._running
        work = self._make_work(request.tokens, request.namespace, request.max_new_tokens, ())
        self._placement.require_room(work)
        self._running[request.request_id] = _Running(request, now, work)
        self._queue.add(request.request_id, work, now)
        return self.dispatch(now)

    def dispatch(self, now: float) -> list[Outcome]:
        """Sends what nodes have room for."""
        return [
            self._start(self._running[request_id], route, now)
            for request_id, route in self._queue.dispatch(now)
        ]

    def tokens(self, message: TokensOut, now: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for out in message.outs:
            running = self._current(out.attempt)
            if running is None or running.route is None or running.route.decode != message.node:
                outcomes.append(Stray(out.attempt, message.node))
            elif problem := _problem(running, out):
                outcomes.append(Send(running.route.decode_address, Cancel(out.attempt)))
                outcomes += self._failed(running, message.node, problem, now)
                outcomes += self.dispatch(now)
            else:
                outcomes += self._take(running, out, now)
        return outcomes

    def failed(self, message: Failed, now: float) -> list[Outcome]:
        running = self._current(message.attempt)
        if running is None:
            return []
        if message.kind == "request":
            return [self._end(running, now, "error", message.reason, BAD_REQUEST)]
        if message.kind == "busy":
            outcomes = self._busy(running, message.node, message.reason, now)
        else:
            outcomes = self._failed(running, message.node, message.reason, now)
        return outcomes + self.dispatch(now)

    def undeliverable(self, attempt: Attempt, now: float) -> list[Outcome]:
        """The decode node could not be told of this attempt."""
        running = self._current(attempt)
        if running is None or running.route is None:
            return []
        node = running.route.decode
        # If all were tried, a little later: its queue may be read, or its lease end.
        retry_in_s = BUSY_RETRY_S if node.name in running.avoid else 0.0
        reason = f"node {node.name} cannot be reached"
        return self._failed(running, node, reason, now, retry_in_s)

    def node_lost(self, node: Node, now: float) -> list[Outcome]:
        """Every request that needs this node goes elsewhere."""
        self._placement.forget(node)
        outcomes: list[Outcome] = []
        for running in list(self._running.values()):
            route = running.route
            if route is None or not _needs(running, route, node):
                continue
            if route.decode != node:
                outcomes.append(Send(route.decode_address, Cancel(running.current)))
            outcomes += self._failed(running, node, f"node {node.name} was lost", now)
        return outcomes + self.dispatch(now)

    def cancel(self, request_id: str, now: float) -> list[Outcome]:
        """The client does not want it any more (or has enough); no `Ended` follows."""
        running = self._running.get(request_id)
        if running is None:
            return []
        self._drop(running, now)
        if running.route is None:
            return []
        return [Send(running.route.decode_address, Cancel(running.current))]

    def remake(self, now: float) -> list[Outcome]:
        """The cluster serves another model or layout now: what waits is hashed again."""
        outcomes: list[Outcome] = []
        for running in [r for r in self._running.values() if r.route is None]:
            self._queue.remove(running.request.request_id)
            running.work = None
            outcomes += self._wait(running, now)
        return outcomes

    def tick(self, now: float) -> list[Outcome]:
        """Tries again for requests without a node, and gives up on those that waited too long."""
        outcomes: list[Outcome] = []
        for running in [r for r in self._running.values() if r.route is None]:
            outcomes += self._wait(running, now)
        return outcomes + self.dispatch(now)

    def _start(self, running: _Running, route: Route, now: float) -> Outcome:
        request = running.request
        if now - running.retry_at > RETRY_WITHIN_S:
            running.give_up_at = None  # it waited here for its turn, not for a busy node
        running.attempt += 1
        running.route = route
        running.num_answered_before = len(running.answered)
        running.answering = False
        running.started_at = now
        generate = Generate(
            attempt=running.current,
            tokens=token_bytes(request.tokens + running.answered),
            namespace=request.namespace,
            sampling=request.sampling,
            max_new_tokens=request.max_new_tokens - len(running.answered),
            stop_token_ids=request.stop_token_ids,
            prefill_node=route.prefill,
            prefill_address=route.prefill_address,
            reply_address=self._reply_address,
            fetch_node=route.fetch_from,
            fetch_address=route.fetch_address,
            fetch_pages=route.fetch_pages,
        )
        return Send(route.decode_address, generate)

    def _take(self, running: _Running, out: TokenOut, now: float) -> list[Outcome]:
        assert running.route is not None  # it is current
        if not running.answering:
            self._placement.computed(running.request.request_id, now)
        running.answering = True
        running.give_up_at = None
        running.answered += out.tokens
        outcomes: list[Outcome] = [
            Produced(
                running.request.request_id,
                running.request,
                running.work.hashes if running.work is not None else [],
                out.tokens,
                running.attempt,
                running.route,
                out.cached_tokens,
                out.fetched_tokens,
                out.transferred_pages,
                out.logprobs,
            )
        ]
        if out.finish:
            outcomes.append(self._end(running, now, out.finish))
        return outcomes

    def _failed(
        self, running: _Running, node: Node, reason: str, now: float, retry_in_s: float = 0.0
    ) -> list[Outcome]:
        """A node could not do it: another one is to, at once."""
        running.num_failures += 1
        if running.num_failures == MAX_FAILURES:
            message = f"gave up after {running.attempt} attempts; the last one: {reason}"
            return [self._end(running, now, "error", message, NODE_FAILED)]
        running.status_code = NODE_FAILED
        running.retry_at, running.give_up_at = now + retry_in_s, now + RETRY_WITHIN_S
        return self._lost_its_node(running, node, reason, now)

    def _busy(self, running: _Running, node: Node, reason: str, now: float) -> list[Outcome]:
        """A node's queue is full: another one is asked at once; if all were, a little later."""
        running.status_code = TOO_BUSY
        running.retry_at = now + BUSY_RETRY_S if node.name in running.avoid else now
        was_waiting_for_this_node = now - running.started_at > RETRY_WITHIN_S
        if running.give_up_at is None or was_waiting_for_this_node:
            running.give_up_at = now + RETRY_WITHIN_S
        elif now >= running.give_up_at:
            return [self._end(running, now, "error", reason, TOO_BUSY)]
        return self._lost_its_node(running, node, reason, now)

    def _lost_its_node(
        self, running: _Running, node: Node, reason: str, now: float
    ) -> list[Outcome]:
        request = running.request
        self._placement.ended(request.request_id, now)
        running.avoid.add(node.name)
        running.last_failure = reason
        running.route = None
        running.work = None
        return self._wait(running, now)

    def _wait(self, running: _Running, now: float) -> list[Outcome]:
        """Queues a request that has no node, if it is time; ends it if there was none too long."""
        if now < running.retry_at:
            return []
        try:
            work = running.work = running.work or self._work(running)
            self._placement.require_room(work)
        except NoRoute as error:
            if running.give_up_at is None:
                running.give_up_at = now + RETRY_WITHIN_S
            if now < running.give_up_at:
                return []
            reason = f"{running.last_failure}, and {error}" if running.last_failure else str(error)
            return [self._end(running, now, "error", reason, running.status_code)]
        if running.request.request_id not in self._queue:
            self._queue.add(running.request.request_id, work, running.arrived)
        waits_for_its_turn = now - running.retry_at > RETRY_WITHIN_S
        if running.status_code == NODE_FAILED or waits_for_its_turn:
            running.give_up_at, running.status_code = None, NODE_FAILED  # there is a node
        return []

    def _work(self, running: _Running) -> Work:
        """Raises NoRoute."""
        request = running.request
        return self._make_work(
            request.tokens + running.answered,
            request.namespace,
            request.max_new_tokens - len(running.answered),
            frozenset(running.avoid),
        )

    def _end(
        self, running: _Running, now: float, finish: str, message: str = "", status_code: int = 200
    ) -> Ended:
        self._drop(running, now)
        request_id = running.request.request_id
        return Ended(request_id, finish, message, status_code, running.attempt)

    def _drop(self, running: _Running, now: float) -> None:
        request_id = running.request.request_id
        del self._running[request_id]
        self._queue.remove(request_id)
        self._placement.ended(request_id, now)

    def _current(self, attempt: Attempt) -> _Running | None:
        """The request this attempt is the newest of; None for anything older, given up or
        unknown."""
        running = self._running.get(attempt.request_id)
        if running is None or running.route is None or running.current != attempt:
            return None
        return running


def _problem(running: _Running, out: TokenOut) -> str:
    """Why these tokens cannot be used; "" if they can."""
    if running.num_answered_before + out.start != len(running.answered):
        return "tokens were lost on the way"
    if running.request.sampling.wants_logprobs and len(out.logprobs) != len(out.tokens):
        return "tokens came without their logprobs"
    return ""


def _needs(running: _Running, route: Route, node: Node) -> bool:
    """A prefill node is needed until the first token; the decode node until the end."""
    return route.decode == node or (route.prefill == node and not running.answering)
