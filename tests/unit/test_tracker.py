"""One request, its attempts, and exactly one end."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from nodes import load_of, registry_of

from coordinator.cost import Assigned
from coordinator.router import Demand, NoRoute, Route, Router
from coordinator.tracker import (
    BUSY_RETRY_S,
    MAX_FAILURES,
    RETRY_WITHIN_S,
    Ended,
    Outcome,
    Produced,
    Request,
    Send,
    Stray,
    Tracker,
)
from protocol.hashing import tokens_from_bytes
from protocol.ids import Attempt, Node
from protocol.messages import Cancel, Failed, FailureKind, Generate, TokenOut, TokensOut
from protocol.sampling import Sampling

D0, D1, P0 = Node("d0", 1), Node("d1", 1), Node("p0", 1)


class Nodes:
    """Routes over the nodes that are left."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def route(
        self,
        tokens: list[int],
        cache_salt: str,
        max_new_tokens: int,
        assigned: Mapping[str, Assigned],
        avoid: Collection[str],
    ) -> Route:
        registry = registry_of({name: load_of() for name in self.names})
        demand = Demand(len(tokens), 100, {})
        return Router(local_prefill_max_tokens=0).route(demand, registry, assigned, avoid)


def request(name: str = "r", max_new_tokens: int = 8) -> Request:
    return Request(name, [1, 2, 3], "", Sampling(seed=5), max_new_tokens, [0])


def sent(outcomes: list[Outcome]) -> Generate:
    messages = [o.message for o in outcomes if isinstance(o, Send)]
    generates = [m for m in messages if isinstance(m, Generate)]
    assert len(generates) == 1
    return generates[0]


def tokens_of(
    attempt: Attempt, *tokens: int, finish: str = "", start: int = 0, node: Node = D0
) -> TokensOut:
    return TokensOut([TokenOut(attempt, start, list(tokens), finish)], node)


def start(*names: str) -> tuple[Tracker, Nodes, Generate]:
    nodes = Nodes(*names)
    tracker = Tracker(nodes.route, "tcp://me:1")
    return tracker, nodes, sent(tracker.submit(request(), 0.0))


def test_tokens_until_the_end() -> None:
    tracker, _, generate = start("p0", "d0")
    assert generate.reply_address == "tcp://me:1"
    assert generate.prefill_address == "tcp://p0:1"
    assert tokens_from_bytes(generate.tokens) == [1, 2, 3]
    (produced,) = tracker.tokens(tokens_of(generate.attempt, 7), 0.1)
    assert isinstance(produced, Produced) and produced.tokens == [7]
    *_, ended = tracker.tokens(tokens_of(generate.attempt, 0, finish="stop", start=1), 0.2)
    assert ended == Ended("r", "stop")
    assert len(tracker) == 0
    assert tracker.tokens(tokens_of(generate.attempt, 9), 0.3) == [Stray(generate.attempt, D0)]


def test_a_gap_in_the_tokens_is_a_failure_and_what_was_told_stays() -> None:
    tracker, _, generate = start("d0", "d1")
    tracker.tokens(tokens_of(generate.attempt, 7, 8), 0.1)
    outcomes = tracker.tokens(tokens_of(generate.attempt, 9, start=3), 0.2)
    assert Send("tcp://d0:1", Cancel(generate.attempt)) in outcomes
    again = sent(outcomes)
    assert tokens_from_bytes(again.tokens) == [1, 2, 3, 7, 8]
    (produced,) = tracker.tokens(tokens_of(again.attempt, 9, node=D1), 0.3)
    assert isinstance(produced, Produced) and produced.tokens == [9]


def test_tokens_count_only_from_the_node_that_was_asked() -> None:
    tracker, _, generate = start("d0", "d1")
    stray = tracker.tokens(tokens_of(generate.attempt, 7, node=D1), 0.1)
    assert stray == [Stray(generate.attempt, D1)]


def test_a_lost_decode_node_is_replaced_and_the_answer_goes_on() -> None:
    tracker, nodes, generate = start("p0", "d0", "d1")
    tracker.tokens(tokens_of(generate.attempt, 7, 8), 0.1)
    nodes.names.remove("d0")
    again = sent(tracker.node_lost(D0, 1.0))
    assert again.attempt == Attempt("r", 2)
    assert tokens_from_bytes(again.tokens) == [1, 2, 3, 7, 8]
    assert again.max_new_tokens == 6
    assert again.sampling == generate.sampling, "a retry draws the same tokens"
    stray = tracker.tokens(tokens_of(generate.attempt, 9), 1.1)
    assert stray == [Stray(generate.attempt, D0)], "the old attempt is void"


def test_a_prefill_node_is_needed_until_the_first_token_only() -> None:
    tracker, nodes, generate = start("p0", "d0")
    tracker.tokens(tokens_of(generate.attempt, 7), 0.1)
    assert tracker.node_lost(P0, 0.2) == []
    tracker, nodes, generate = start("p0", "d0")
    nodes.names.remove("p0")
    outcomes = tracker.node_lost(P0, 0.2)
    assert Send("tcp://d0:1", Cancel(generate.attempt)) in outcomes
    assert sent(outcomes).prefill_address == ""


def test_without_any_node_it_waits_then_fails_once() -> None:
    tracker, nodes, _ = start("d0")
    nodes.names.clear()
    assert tracker.node_lost(D0, 1.0) == []
    assert tracker.tick(1.0 + RETRY_WITHIN_S - 0.1) == []
    (ended,) = tracker.tick(1.0 + RETRY_WITHIN_S)
    assert isinstance(ended, Ended)
    assert (ended.finish, ended.status_code) == ("error", 503)
    assert tracker.tick(100.0) == []


def test_a_node_that_comes_back_in_time_gets_the_request() -> None:
    tracker, nodes, _ = start("d0")
    nodes.names.clear()
    tracker.node_lost(D0, 1.0)
    nodes.names.append("d1")
    assert sent(tracker.tick(2.0)).attempt.number == 2


def test_attempts_are_bounded() -> None:
    tracker, _, _ = start("d0", "d1")
    for number in range(1, MAX_FAILURES):
        failed = Failed(Attempt("r", number), "broken", "node", D0)
        assert sent(tracker.failed(failed, 0.0)).attempt.number == number + 1
    last = Failed(Attempt("r", MAX_FAILURES), "broken", "node", D0)
    (ended,) = tracker.failed(last, 0.0)
    assert isinstance(ended, Ended)
    assert "4 attempts" in ended.message and ended.status_code == 503


def test_what_no_retry_can_mend_ends_at_once() -> None:
    tracker, _, generate = start("d0")
    failed = Failed(generate.attempt, "too long", "request", D0)
    assert tracker.failed(failed, 0.0) == [Ended("r", "error", "too long", 400)]


def test_a_prefill_node_that_failed_is_not_asked_again() -> None:
    tracker, _, generate = start("p0", "p1", "d0")
    addresses = [generate.prefill_address]
    for number in (1, 2):
        node = generate.prefill_node
        assert node is not None
        generate = sent(tracker.failed(Failed(Attempt("r", number), "broken", "node", node), 0.0))
        addresses.append(generate.prefill_address)
    assert set(addresses[:2]) == {"tcp://p0:1", "tcp://p1:1"}
    assert addresses[2] == "", "decode prefills for itself"


def test_busy_nodes_are_asked_again_later_and_cost_no_attempt() -> None:
    tracker, _, generate = start("d0", "d1")
    busy = Failed(generate.attempt, "full", "busy", D0)
    generate = sent(tracker.failed(busy, 0.0))
    now, decode = 0.0, D1
    for _ in range(3 * MAX_FAILURES):
        outcomes = tracker.failed(Failed(generate.attempt, "full", "busy", decode), now)
        if not outcomes:
            assert tracker.tick(now + BUSY_RETRY_S / 2) == []
            now += BUSY_RETRY_S
            outcomes = tracker.tick(now)
        generate, decode = sent(outcomes), D0
    (ended,) = tracker.failed(Failed(generate.attempt, "full", "busy", D0), RETRY_WITHIN_S)
    assert isinstance(ended, Ended) and ended.status_code == 429


def test_a_busy_node_long_after_another_one_is_waited_for_again() -> None:
    tracker, _, generate = start("d0", "d1")
    again = sent(tracker.failed(Failed(generate.attempt, "full", "busy", D0), 0.0))
    later = 3 * RETRY_WITHIN_S
    outcomes = tracker.failed(Failed(again.attempt, "full", "busy", D1), later)
    assert not any(isinstance(outcome, Ended) for outcome in outcomes)


def test_cancel_tells_the_decode_node_and_nothing_else() -> None:
    tracker, _, generate = start("p0", "d0")
    assert tracker.cancel("r") == [Send("tcp://d0:1", Cancel(generate.attempt))]
    assert tracker.cancel("r") == []
    assert len(tracker) == 0


def test_no_route_at_submission_keeps_nothing() -> None:
    tracker = Tracker(Nodes().route, "me")
    with pytest.raises(NoRoute):
        tracker.submit(request(), 0.0)
    assert len(tracker) == 0


def test_assigned_work_shrinks_with_the_first_token() -> None:
    tracker, _, generate = start("p0", "d0")
    assert tracker.assigned() == {"p0": Assigned(3, 1), "d0": Assigned(0, 1)}
    tracker.tokens(tokens_of(generate.attempt, 7), 0.1)
    assert tracker.assigned() == {"d0": Assigned(0, 1)}


class TrackerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order: one end, and no token after it."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = Nodes("p0", "p1", "d0", "d1")
        self.tracker = Tracker(self.nodes.route, "me")
        self.now = 0.0
        self.count = 0
        self.sent: list[Generate] = []
        self.produced: dict[str, int] = {}
        self.ends: dict[str, int] = {}

    def take(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Ended):
                self.ends[outcome.request_id] = self.ends.get(outcome.request_id, 0) + 1
            elif isinstance(outcome, Produced):
                assert outcome.request_id not in self.ends, "a token after the end"
                self.produced[outcome.request_id] += len(outcome.tokens)
            elif isinstance(outcome, Send) and isinstance(outcome.message, Generate):
                self.sent.append(outcome.message)

    @rule()
    def submit(self) -> None:
        self.count += 1
        name = f"r{self.count}"
        self.produced[name] = 0
        try:
            self.take(self.tracker.submit(request(name), self.now))
        except NoRoute:
            self.ends[name] = 1

    @rule(data=st.data(), finish=st.sampled_from(["", "", "", "stop"]), start=st.integers(0, 3))
    def token(self, data: st.DataObject, finish: str, start: int) -> None:
        """From any attempt, also from one that is long given up; in order or not."""
        if self.sent:
            generate = data.draw(st.sampled_from(self.sent))
            message = tokens_of(
                generate.attempt,
                7,
                finish=finish,
                start=start,
                node=data.draw(st.sampled_from([D0, D1])),
            )
            self.take(self.tracker.tokens(message, self.now))

    @rule(data=st.data(), kind=st.sampled_from(["node", "busy", "request"]))
    def failure(self, data: st.DataObject, kind: FailureKind) -> None:
        if self.sent:
            generate = data.draw(st.sampled_from(self.sent))
            node = data.draw(st.sampled_from([D0, D1, P0]))
            self.take(self.tracker.failed(Failed(generate.attempt, "broken", kind, node), self.now))

    @rule(name=st.sampled_from(["p0", "p1", "d0", "d1"]))
    def lose(self, name: str) -> None:
        if name in self.nodes.names:
            self.nodes.names.remove(name)
            self.take(self.tracker.node_lost(Node(name, 1), self.now))

    @rule(name=st.sampled_from(["p0", "p1", "d0", "d1"]))
    def join(self, name: str) -> None:
        if name not in self.nodes.names:
            self.nodes.names.append(name)

    @rule(seconds=st.floats(0.0, RETRY_WITHIN_S))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.tracker.tick(self.now))

    @invariant()
    def at_most_one_end(self) -> None:
        assert all(count == 1 for count in self.ends.values())
        for name in self.produced:
            assert (name in self.tracker) != (name in self.ends)

    def teardown(self) -> None:
        """Everything ends when no node is left."""
        for name in list(self.nodes.names):
            self.lose(name)
        for _ in range(2):
            self.tick(RETRY_WITHIN_S)
        assert len(self.tracker) == 0
        self.at_most_one_end()


TestTrackerMachine = TrackerMachine.TestCase
TestTrackerMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
