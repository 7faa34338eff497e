"""One request, its attempts, and exactly one end, whatever happens in whatever order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.core.instructions import (
    AnswerChanged,
    AnswerEnded,
    Instruction,
    Send,
)
from coordinator.core.patience import RETRY_WITHIN_S
from coordinator.routing.route import NoRoute
from protocol.ids import Attempt, Node
from protocol.messages import Failed, FailureKind, Generate
from tests.support.coordinator.nodes import Nodes, booked, load_of
from tests.support.coordinator.tracking import LONG, request, tick, tokens_of, tracker_of

NAMES = st.sampled_from(["p0", "p1", "d0", "d1"])


class TrackerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order: one end, no token after it, and nothing stays booked."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = Nodes("p0", "p1", "d0", "d1")
        self.lives = {name: [Node(name, 1)] for name in self.nodes.names}
        self.tracker = tracker_of(self.nodes)
        self.now = 0.0
        self.count = 0
        self.sent: list[Generate] = []
        self.asked: dict[str, tuple[Attempt, Node, int]] = {}  # newest attempt, tokens so far
        self.names: list[str] = []
        self.ends: dict[str, int] = {}

    def take(self, outcomes: list[Instruction]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, AnswerEnded):
                assert outcome.answer.is_done
                name = outcome.answer.request_id
                self.ends[name] = self.ends.get(name, 0) + 1
            elif isinstance(outcome, AnswerChanged):
                assert outcome.answer.request_id not in self.ends, "a token after the end"
            elif isinstance(outcome, Send) and isinstance(outcome.message, Generate):
                assert outcome.message.attempt.request_id not in self.ends, "sent after the end"
                self.sent.append(outcome.message)
                name = outcome.address.removeprefix("tcp://").partition(":")[0]
                attempt = outcome.message.attempt
                self.asked[attempt.request_id] = attempt, self.lives[name][-1], 0

    @rule(num_tokens=st.sampled_from([3, 40, LONG]))
    def submit(self, num_tokens: int) -> None:
        self.count += 1
        name = f"r{self.count}"
        self.names.append(name)
        try:
            self.take(
                self.tracker.submit(request(name, num_tokens=num_tokens, now=self.now), self.now)
            )
        except NoRoute:
            self.ends[name] = 1

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), finish=st.sampled_from(["", "", "stop"]))
    def answer(self, data: st.DataObject, finish: str) -> None:
        """What the node that was asked last says next, in order."""
        name = data.draw(st.sampled_from(list(self.asked)))
        attempt, node, start = self.asked[name]
        self.asked[name] = attempt, node, start + 1
        self.take(
            self.tracker.tokens(
                tokens_of(attempt, 7, finish=finish, start=start, node=node), self.now
            )
        )
        if name in self.ends:
            del self.asked[name]

    @rule(data=st.data(), finish=st.sampled_from(["", "", "", "stop"]), start=st.integers(0, 3))
    def token(self, data: st.DataObject, finish: str, start: int) -> None:
        """From any attempt, also from one that is long given up; in order or not."""
        if self.sent:
            attempt = data.draw(st.sampled_from(self.sent)).attempt
            node = self.any_life(data, st.sampled_from(["d0", "d1"]))
            message = tokens_of(attempt, 7, finish=finish, start=start, node=node)
            self.take(self.tracker.tokens(message, self.now))

    @rule(data=st.data(), kind=st.sampled_from(["node", "busy", "request"]))
    def failure(self, data: st.DataObject, kind: FailureKind) -> None:
        if self.sent:
            attempt = data.draw(st.sampled_from(self.sent)).attempt
            failed = Failed(attempt, "broken", kind, self.any_life(data, NAMES))
            self.take(self.tracker.failed(failed, self.now))

    def any_life(self, data: st.DataObject, names: st.SearchStrategy[str]) -> Node:
        return data.draw(st.sampled_from(self.lives[data.draw(names)]))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.sent:
            name = data.draw(st.sampled_from(self.sent)).attempt.request_id
            self.take(self.tracker.cancel(name, self.now))

    @rule(name=NAMES)
    def lose(self, name: str) -> None:
        node = self.lives[name][-1]
        if name in self.nodes.names:
            self.nodes.leave(name, node.incarnation)
            self.take(self.tracker.node_lost(node, self.now))

    @rule(name=NAMES)
    def join(self, name: str) -> None:
        """A new life; if the one before it still seemed alive, this is how its end is noticed."""
        lives = self.lives[name]
        was_alive = name in self.nodes.names
        lives.append(Node(name, lives[-1].incarnation + 1))
        live = self.nodes.join(name, now=self.now, incarnation=lives[-1].incarnation)
        if was_alive:
            self.take(self.tracker.node_lost(lives[-2], self.now))
        self.nodes.placement.heard(live, self.now)

    @rule(name=NAMES, queued_tokens=st.sampled_from([0, 0, 500, LONG]))
    def heartbeat(self, name: str, queued_tokens: int) -> None:
        if name in self.nodes.names:
            load, incarnation = load_of(queued_tokens), self.lives[name][-1].incarnation
            live = self.nodes.join(name, load, self.now, incarnation)
            self.nodes.placement.heard(live, self.now)

    @rule(seconds=st.sampled_from([0.1, 1.0, RETRY_WITHIN_S]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.take(tick(self.tracker, self.now))

    @rule(seconds=st.floats(0.0, 0.2))
    def dispatch(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.tracker.dispatch(self.now))

    @invariant()
    def at_most_one_end(self) -> None:
        assert all(count == 1 for count in self.ends.values())
        for name in self.names:
            assert (name in self.tracker) != (name in self.ends)

    @invariant()
    def what_is_booked_is_running(self) -> None:
        backlogs = self.nodes.placement.queues.values()
        assert all(backlog.num_requests >= 0 for backlog in backlogs)
        num_sent = len(self.tracker) - self.tracker.num_waiting
        assert sum(backlog.num_requests for backlog in backlogs) <= 2 * num_sent
        if not len(self.tracker):
            assert booked(self.nodes.placement) == {} and self.tracker.num_waiting == 0

    def teardown(self) -> None:
        """Everything ends at its deadline, also when no node is left."""
        for name in list(self.nodes.names):
            self.lose(name)
        self.tick(RETRY_WITHIN_S)
        self.take(self.tracker.time_out(0.0, self.now))
        assert len(self.tracker) == 0
        self.at_most_one_end()
        self.what_is_booked_is_running()


TestTrackerMachine = TrackerMachine.TestCase
TestTrackerMachine.settings = settings(stateful_step_count=40)
