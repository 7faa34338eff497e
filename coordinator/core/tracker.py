"""`Tracker`: every unfinished request, and the one place that retries. Pure.

A request waits in the dispatch queue until it is bound to nodes. It has attempts; only messages of
the newest one count. When a node fails, the next attempt sends the prompt plus the tokens answered
so far, so the client's stream goes on. A pause of the cluster takes all requests back from the
nodes in the same manner. Each request ends with exactly one `AnswerEnded`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from coordinator.admission.limits import Limits, whole_seconds
from coordinator.answers.answer import Answer, AnswerError, ErrorKind, NewTokens
from coordinator.core.demands import DemandMaker
from coordinator.core.instructions import (
    AnswerChanged,
    AnswerEnded,
    Instruction,
    Send,
    TellCoordinators,
)
from coordinator.core.poison import HOLD_S, RefusedContents, Suspects, content_digest
from coordinator.core.request_reports import goes_by, reportable, state_of
from coordinator.core.statistics import Statistics
from coordinator.core.tracked_request import TrackedRequest
from coordinator.leaving.taking_over import AnsweredBefore, begin_with
from coordinator.metrics.request_measures import Loss
from coordinator.routing.demand import Demand
from coordinator.routing.dispatch import DispatchQueue
from coordinator.routing.placement import Placement
from coordinator.routing.route import NoRoute, Route
from coordinator.routing.routed_request import RoutedRequest
from coordinator.timelines.ended_requests import ReportableRequest
from protocol.hashing import token_bytes
from protocol.ids import Attempt, Node
from protocol.messages import Cancel, Failed, Generate, RefuseContent, TokenOut, TokensOut

log = logging.getLogger(__name__)

NO_LIMITS = Limits(max_ttft_s=0.0, max_wait_s=math.inf)


class Tracker:
    """Sends requests to nodes and takes what nodes say of them, until each request has ended
    once."""

    def __init__(
        self,
        placement: Placement,
        queue: DispatchQueue,
        demands: DemandMaker,
        statistics: Statistics,
        reply_address: str,
        limits: Limits = NO_LIMITS,
    ) -> None:
        """`reply_address` is where nodes send the tokens of this coordinator's requests."""
        self._placement = placement
        self._queue = queue
        self._demands = demands
        self._statistics = statistics
        self._reply_address = reply_address
        self._limits = limits
        self._requests: dict[str, TrackedRequest] = {}
        self._rids: set[str] = set()
        """The clients' names of the same requests."""
        self.refused = RefusedContents()
        """Contents of requests of which nodes have died."""
        self._suspects: Suspects[TrackedRequest] = Suspects()
        self._left_behind: dict[str, tuple[Node, list[Attempt]]] = {}
        """Attempts that the last incarnation of each name had that was lost, if it still lives."""
        self._paused_at: float | None = None
        """When the pause began in which nothing is sent; None while there is none."""

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    @property
    def num_waiting(self) -> int:
        """The number of requests in the dispatch queue."""
        return len(self._queue)

    def has_rid(self, rid: str) -> bool:
        """Returns True while a request to which its client gave the name `rid` is unfinished."""
        return rid in self._rids

    def submit(
        self, answer: Answer, now: float, require_in_time: Callable[[float], None] | None = None
    ) -> list[Instruction]:
        """Starts a request. Raises NoRoute, and keeps nothing, if the nodes that there are could
        never take it; if there is none, it waits for one. So it does with what `require_in_time`
        raises, which is told how long the prompt takes to compute. Without it the request may wait
        for its turn as long as for its end."""
        assert answer.request_id not in self._requests and answer.rid not in self._rids
        tracked = TrackedRequest(answer)
        self._add(tracked, now, require_in_time)
        index = self._placement.index
        tracked.diverges_early = self._demands.diverges_early(tracked.hashes, index)
        return self.dispatch(now)

    def take_over(self, answer: Answer, before: AnsweredBefore, now: float) -> list[Instruction]:
        """Goes on with an answer that another coordinator had begun. Raises NoRoute as `submit`
        does."""
        is_whole = begin_with(answer, before, now)
        tracked = TrackedRequest(answer, answered=list(answer.output_ids))
        if is_whole:
            self._statistics.answer_ended(tracked, now)
            return [AnswerEnded(answer)]
        self._add(tracked, now)
        return [AnswerChanged(answer), *self.dispatch(now)]

    def newest_first(self) -> Iterator[ReportableRequest]:
        """Returns what can be told of the unfinished requests, the youngest first."""
        return map(reportable, reversed(self._requests.values()))

    def oldest_first(self) -> Iterator[ReportableRequest]:
        """Returns what can be told of the unfinished requests, the oldest first."""
        return map(reportable, self._requests.values())

    def num_in_stages(self) -> dict[str, int]:
        """Returns how many requests wait, are being computed, and are being answered."""
        states = Counter(map(state_of, self._requests.values()))
        return {state: states[state] for state in ("waiting", "computing", "answering")}

    def sent(self, attempt: Attempt, now: float) -> None:
        """Notes that the message to an attempt's node is about to leave."""
        tracked = self._current(attempt)
        if tracked is not None:
            tracked.answer.timeline.sent(now)

    def dispatch(self, now: float) -> list[Instruction]:
        """Sends those waiting requests that nodes have room for now; none during a pause."""
        if self._paused_at is not None:
            return []
        return [
            self._start(self._requests[routed.request_id], route, now)
            for routed, route in self._queue.dispatch(now)
        ]

    def tokens(self, message: TokensOut, now: float) -> list[Instruction]:
        """Takes the tokens that one step of a decode node has produced. An attempt that nobody
        waits for is cancelled at the node."""
        instructions: list[Instruction] = []
        for out in message.outs:
            tracked = self._current(out.attempt)
            if (
                tracked is None
                or tracked.route is None
                or message.node not in (tracked.route.decode, tracked.route.prefill)
            ):
                instructions += self._cancel_stray(out.attempt, message.node)
            elif problem := tracked.problem_with(out):
                # The node does not know of the problem, and would go on.
                instructions.append(Send(tracked.route.decode_address, Cancel(out.attempt)))
                instructions += self._failed(tracked, message.node, problem, now)
                instructions += self.dispatch(now)
            else:
                instructions += self._take(tracked, tracked.route, tracked.news_in(out), now)
        return instructions

    def failed(self, message: Failed, now: float) -> list[Instruction]:
        """Handles the news that an attempt has ended without an answer: the request is tried
        elsewhere, or ends if no node can take it."""
        tracked = self._current(message.attempt)
        if tracked is None:
            return []
        if message.kind == "request":
            return [self._abort(tracked, "bad_request", message.reason, now)]
        if message.kind == "busy":
            instructions = self._busy(tracked, message.node, message.reason, now)
        else:
            instructions = self._failed(tracked, message.node, message.reason, now)
        return instructions + self.dispatch(now)

    def undeliverable(self, attempt: Attempt, now: float) -> list[Instruction]:
        """Handles the news that a decode node could not be told of an attempt; the request is tried
        elsewhere."""
        tracked = self._current(attempt)
        if tracked is None or tracked.route is None:
            return []
        node = tracked.route.decode
        # If all were tried, a little later: its queue may be read, or its lease end.
        retry_in_s = tracked.patience.pause_before(node.name)
        reason = f"node {node.name} cannot be reached"
        return self._failed(tracked, node, reason, now, retry_in_s)

    def node_lost(
        self, node: Node, now: float, was_alive_at: float = -math.inf
    ) -> list[Instruction]:
        """Handles the news that an incarnation of a node is over; requests that need it are tried
        elsewhere. `was_alive_at` tells when the last sign of a node came that was not told to stop:
        one of the requests that had been sent by then may be the reason."""
        self._placement.forget(node)
        instructions: list[Instruction] = []
        lost = [
            one for one in self._requests.values() if one.route and _needs(one, one.route, node)
        ]
        for tracked in lost:
            # The decode node still waits for pages that will not come.
            if tracked.route is not None and tracked.route.decode != node:
                instructions += self._cancel_current(tracked)
        self._left_behind[node.name] = (
            node,
            [tracked.current for tracked in lost if tracked.route and tracked.route.decode == node],
        )
        suspects = [tracked for tracked in lost if tracked.patience.sent_at <= was_alive_at]
        instructions += self._suspect(suspects, node, now)
        for tracked in lost:
            if tracked.answer.is_done:
                continue  # it was found guilty
            is_held = tracked.suspicion.dead_nodes and not tracked.is_answering
            hold_s = HOLD_S if is_held else 0.0
            reason = f"node {node.name} was lost"
            instructions += self._failed(tracked, node, reason, now, hold_s, "node_lost")
        return instructions + self.dispatch(now)

    def node_heard(self, node: Node) -> list[Instruction]:
        """Cancels what a node still works on that was taken for lost, as it was stopped or cut off
        for a while. It may wait for pages, and would hold its own as long as it waits."""
        lost, attempts = self._left_behind.pop(node.name, (node, []))
        return [
            instruction
            for attempt in (attempts if lost == node else [])
            for instruction in self._cancel_stray(attempt, node)
        ]

    def _suspect(self, lost: Iterable[TrackedRequest], node: Node, now: float) -> list[Instruction]:
        """Ends the request of which nodes die, if it is known now."""
        poison = self._suspects.culprit(lost, node.name, now)
        if poison is None:
            return []
        digest = content_digest(poison.answer.request)
        self.refused.add(digest, now)
        message = poison.suspicion.sentence()
        log.error("request %s: %s", poison.answer.rid, message)
        end = self._abort(poison, "ends_nodes", message, now)
        return [end, TellCoordinators(RefuseContent(digest))]

    def cancel(self, request_id: str, now: float) -> list[Instruction]:
        """Ends a request that its client does not want any more. Does nothing if it has ended."""
        tracked = self._requests.get(request_id)
        if tracked is None:
            return []
        instructions = self._cancel_current(tracked)
        message = "the client has left"
        return [*instructions, self._abort(tracked, "client_left", message, now)]

    def abort(self, rid: str, abort_all: bool, now: float) -> list[Instruction]:
        """Ends the requests that go by the name `rid`, or all of them, with what they have answered
        so far."""
        instructions: list[Instruction] = []
        for tracked in list(self._requests.values()):
            if abort_all or goes_by(rid, tracked.answer.rid):
                instructions += self._cancel_current(tracked)
                tracked.answer.abort_as_asked(now)
                instructions.append(self._end(tracked, now))
        return instructions

    def end_all(self, reason: str, now: float) -> list[Instruction]:
        """Ends all requests with the error `reason`. Nodes are not told, as another coordinator may
        take the answers over."""
        instructions: list[Instruction] = []
        for tracked in list(self._requests.values()):
            instructions.append(self._abort(tracked, "unavailable", reason, now))
        return instructions

    def pause(self, now: float) -> list[Instruction]:
        """Takes all requests back from the nodes, and sends none until `resume`. They wait, with
        what they have answered so far, and no limit of time ends them."""
        assert self._paused_at is None
        self._paused_at = now
        self._queue.turns.interrupted()
        instructions: list[Instruction] = []
        for tracked in list(self._requests.values()):
            if tracked.route is None:
                continue
            instructions += self._cancel_current(tracked)
            self._take_back(tracked, now)
            tracked.answer.timeline.lost("generation was paused", now)
            self._statistics.requests.attempt_lost("paused")
            tracked.patience.held()
            instructions += self._wait(tracked, now)
        return instructions

    def resume(self, now: float) -> list[Instruction]:
        """Sends requests again. The pause counts for none of their limits."""
        assert self._paused_at is not None
        for tracked in self._requests.values():
            held_s = now - max(self._paused_at, tracked.answer.started_at)
            tracked.held_s += held_s
            tracked.patience.held()
            if tracked.routed is not None:
                tracked.routed.arrived += held_s
        self._paused_at = None
        return self.retry(now) + self.dispatch(now)

    def time_out(self, older_than_s: float, now: float) -> list[Instruction]:
        """Ends the requests that have taken longer than `older_than_s`; none during a pause."""
        instructions: list[Instruction] = []
        if self._paused_at is not None:
            return instructions
        # The oldest first. It was held longer than a younger one by pauses before that one came
        # only, so its limit ends first too.
        for tracked in list(self._requests.values()):
            if now - tracked.answer.started_at - tracked.held_s <= older_than_s:
                break
            instructions += self._cancel_current(tracked)
            error = tracked.patience.too_late(older_than_s)
            instructions.append(self._abort(tracked, error.kind, error.message, now))
        return instructions

    def hash_again(self, now: float) -> list[Instruction]:
        """Queues all waiting requests anew, with new page hashes. It is called when the cluster
        begins to serve another model or layout."""
        instructions: list[Instruction] = []
        for tracked in self._without_route():
            if tracked.routed is not None:
                self._queue.remove(tracked.routed, now)
                tracked.routed = None
            instructions += self._wait(tracked, now)
        return instructions

    def retry(self, now: float) -> list[Instruction]:
        """Queues the requests that no node could take so far; does nothing during a pause."""
        instructions: list[Instruction] = []
        if self._paused_at is not None:
            return instructions
        for tracked in self._without_route():
            if self._has_waited_too_long(tracked, now):
                instructions.append(self._give_up(tracked, now))
            else:
                instructions += self._wait(tracked, now)
        return instructions

    def _add(
        self,
        tracked: TrackedRequest,
        now: float,
        require_in_time: Callable[[float], None] | None = None,
    ) -> None:
        """Takes a new request. Raises NoRoute if all nodes are too small, or what
        `require_in_time` raises, and then keeps nothing."""
        if self._placement.open():
            demand = self._demands.demand_of(tracked)
            self._placement.require_room(demand)
            if require_in_time is not None:
                work_s = self._placement.assess(demand, now)[0]
                require_in_time(work_s)
                tracked.longest_wait_s = self._limits.longest_wait_s(work_s)
            self._enqueue(tracked, demand, now)
        self._requests[tracked.request_id] = tracked
        self._rids.add(tracked.answer.rid)

    def _has_waited_too_long(self, tracked: TrackedRequest, now: float) -> bool:
        """Returns True if it is too late to begin with a request that no node was given yet."""
        if tracked.attempt_number or tracked.routed is None:
            return False
        return now - tracked.routed.arrived > tracked.longest_wait_s

    def _give_up(self, tracked: TrackedRequest, now: float) -> Instruction:
        waited_s = now - tracked.answer.started_at - tracked.held_s
        request = tracked.answer.request
        retry_after_s = whole_seconds(self._queue.wait_s(request.tenant, request.priority, now))
        message = (
            f"the request has waited {waited_s:.1f} s, and its turn has not come; come back in "
            f"{retry_after_s} s"
        )
        return self._abort(tracked, "too_busy", message, now, retry_after_s)

    def _without_route(self) -> list[TrackedRequest]:
        return [tracked for tracked in self._requests.values() if tracked.route is None]

    def _enqueue(self, tracked: TrackedRequest, demand: Demand, now: float) -> None:
        arrived = tracked.answer.started_at + tracked.held_s
        request = tracked.answer.request
        tracked.routed = RoutedRequest(
            tracked.request_id,
            demand,
            arrived,
            request.priority,
            request.tenant,
            tracked.num_tokens_left,
        )
        self._queue.add(tracked.routed, now)

    def _start(self, tracked: TrackedRequest, route: Route, now: float) -> Instruction:
        request = tracked.answer.request
        tracked.patience.sent(now)
        tracked.attempt_number += 1
        tracked.route = route
        tracked.num_answered_before = len(tracked.answered)
        tracked.is_answering = False
        prefill = route.prefill.name if route.prefill is not None else ""
        tracked.answer.timeline.routed(route.decode.name, prefill, now)
        self._statistics.requests.attempt_sent(route, is_resumed=bool(tracked.answered))
        generate = Generate(
            attempt=tracked.current,
            tokens=token_bytes(tracked.tokens),
            namespace=request.namespace,
            sampling=tracked.sampling,
            max_new_tokens=tracked.num_tokens_left,
            end_token_ids=list(request.end_token_ids),
            prefill_node=route.prefill,
            prefill_address=route.prefill_address,
            reply_address=self._reply_address,
            fetch_node=route.fetch_from,
            fetch_address=route.fetch_address,
            fetch_pages=route.fetch_pages,
            x_request_id=request.arrival.http_id,
            resume_key=request.resume_key,
        )
        return Send(route.decode_address, generate)

    def _take(
        self, tracked: TrackedRequest, route: Route, out: TokenOut, now: float
    ) -> list[Instruction]:
        answer = tracked.answer
        is_first = answer.first_token_at is None
        if not tracked.is_answering and tracked.routed is not None:
            self._placement.computed(tracked.routed, now)
            self._prompt_is_computed(tracked.routed, route, now)
        if out.times is not None or not tracked.is_answering:
            answer.timeline.told(out.times, out.prefill_times, now)
        tracked.is_answering = True
        tracked.patience.answered()
        tracked.suspicion.answered()
        tracked.answered += out.tokens
        new = NewTokens(
            out.tokens,
            out.logprobs,
            out.cached_tokens,
            out.fetched_tokens,
            out.transferred_pages,
            out.prompt_logprobs,
        )
        is_stopped = answer.grow(new, route, tracked.attempt_number, now)
        if is_first:
            self._statistics.answer_began(tracked, now)
        elif out.tokens:
            answer.timeline.next_tokens(now)
            self._statistics.requests.tokens_came(len(out.tokens), now - tracked.last_tokens_at)
        if out.tokens:
            tracked.last_tokens_at = now
        if not is_stopped and not out.finish:
            return [AnswerChanged(answer)] if out.tokens else []
        instructions: list[Instruction] = []
        if not out.finish:  # the node does not know stop strings
            instructions = self._cancel_current(tracked)
        else:
            self._answer_is_computed(tracked, route, now)
            if not is_stopped:
                answer.finish(out.finish, now)
        return [*instructions, self._end(tracked, now)]

    def _prompt_is_computed(self, routed: RoutedRequest, route: Route, now: float) -> None:
        """Notes that both nodes own the pages of the prompt: they commit them before its first
        token is sent."""
        for node in {route.computes, route.decode}:
            self._placement.has_prompt(node, routed.demand, now)

    def _answer_is_computed(self, tracked: TrackedRequest, route: Route, now: float) -> None:
        """Notes that the decode node owns the pages of prompt and answer: it commits them before it
        sends the last tokens.

        The node's events may come later than the client's next turn, which would miss the pages
        then. The last token has no KV, as no step has read it.
        """
        num_tokens = len(tracked.answer.request.tokens) + len(tracked.answered) - 1
        hashes = self._demands.hash_pages(tracked, num_tokens)
        self._placement.owns(route.decode, hashes, now)

    def _failed(
        self,
        tracked: TrackedRequest,
        node: Node,
        reason: str,
        now: float,
        retry_in_s: float = 0.0,
        loss: Loss = "failed",
    ) -> list[Instruction]:
        """Notes that a node could not do its part: another one is to do it, at once or in
        `retry_in_s`."""
        self._statistics.requests.attempt_lost(loss)
        number = tracked.attempt_number
        error = tracked.patience.failed(node.name, reason, number, now, retry_in_s)
        return self._ended_or_retried(tracked, error, reason, now)

    def _busy(
        self, tracked: TrackedRequest, node: Node, reason: str, now: float
    ) -> list[Instruction]:
        """Notes that a node's queue is full: another one is asked at once or, if all were full, a
        little later."""
        self._statistics.requests.attempt_lost("busy")
        error = tracked.patience.busy(node.name, reason, now)
        return self._ended_or_retried(tracked, error, reason, now)

    def _ended_or_retried(
        self, tracked: TrackedRequest, error: AnswerError | None, reason: str, now: float
    ) -> list[Instruction]:
        if error is not None:
            return [self._abort(tracked, error.kind, error.message, now)]
        tracked.answer.timeline.lost(reason, now)
        return self._lost_its_node(tracked, now)

    def _lost_its_node(self, tracked: TrackedRequest, now: float) -> list[Instruction]:
        if tracked.routed is not None and tracked.route is not None:
            self._placement.failed(tracked.routed, tracked.route, now)
            self._queue.settle(tracked.routed, None, now)
        tracked.route = tracked.routed = None
        return self._wait(tracked, now)

    def _take_back(self, tracked: TrackedRequest, now: float) -> None:
        """Takes a request back from the nodes that it was sent to, at no cost to its tenant."""
        if tracked.routed is not None:
            self._placement.ended(tracked.routed, now)
            self._queue.settle(tracked.routed, None, now)
        tracked.route = tracked.routed = None

    def _wait(self, tracked: TrackedRequest, now: float) -> list[Instruction]:
        """Queues a request that has no node, if it is time for that and a node could take it. One
        whose answer is whole ends instead."""
        if tracked.known_end:
            tracked.answer.finish(tracked.known_end, now)
            return [self._end(tracked, now)]
        if now < tracked.patience.retry_at or not self._suspects.may_be_tried(tracked):
            return []
        try:
            routed = tracked.routed
            demand = routed.demand if routed is not None else self._demands.demand_of(tracked)
            self._placement.require_room(demand)
        except NoRoute as no_route:
            tracked.patience.no_node(str(no_route))
            return []
        if routed is None:
            self._enqueue(tracked, demand, now)
        tracked.patience.some_node(now)
        return []

    def _abort(
        self,
        tracked: TrackedRequest,
        kind: ErrorKind,
        message: str,
        now: float,
        retry_after_s: int = 1,
    ) -> Instruction:
        tracked.answer.abort(kind, message, tracked.attempt_number, now, retry_after_s)
        return self._end(tracked, now)

    def _end(self, tracked: TrackedRequest, now: float) -> Instruction:
        tracked.answer.timeline.ended(now)
        self._drop(tracked, now)
        self._statistics.answer_ended(tracked, now)
        return AnswerEnded(tracked.answer)

    def _drop(self, tracked: TrackedRequest, now: float) -> None:
        del self._requests[tracked.request_id]
        self._rids.discard(tracked.answer.rid)
        self._suspects.ended(tracked)
        if tracked.routed is not None:
            num_answer_tokens = len(tracked.answered) - tracked.num_answered_before
            self._queue.remove(tracked.routed, now)
            self._queue.settle(tracked.routed, num_answer_tokens, now)
            self._placement.ended(tracked.routed, now)

    def _cancel_current(self, tracked: TrackedRequest) -> list[Instruction]:
        if tracked.route is None:
            return []
        return [Send(tracked.route.decode_address, Cancel(tracked.current))]

    def _cancel_stray(self, attempt: Attempt, node: Node) -> Iterable[Instruction]:
        """Cancels an attempt that nobody waits for at the node that works on it."""
        live = self._placement.registry.get(node)
        return [] if live is None else [Send(live.info.control_address, Cancel(attempt))]

    def _current(self, attempt: Attempt) -> TrackedRequest | None:
        """Returns the request whose newest attempt this is; None if it is older, unknown or given
        up."""
        tracked = self._requests.get(attempt.request_id)
        if tracked is None or tracked.route is None or tracked.attempt_number != attempt.number:
            return None
        return tracked


def _needs(tracked: TrackedRequest, route: Route, node: Node) -> bool:
    """Returns True if the request still needs the node: a prefill node until the first token has
    come, the decode node until the end."""
    return route.decode == node or (route.prefill == node and not tracked.is_answering)
