"""How long a node is thought to be busy, whatever it is sent and says."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.coordinator.backlogs import NamedBacklog

seconds = st.floats(0.0, 100.0)
ids = st.sampled_from("abcdef")


class BacklogMachine(RuleBasedStateMachine):
    """Never less than nothing, never more than all that was said, and nothing in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog = NamedBacklog()
        self.ours: dict[str, float] = {}
        self.heard_s = 0.0
        self.now = 1000.0

    @rule(request_id=ids, work_s=seconds)
    def sent(self, request_id: str, work_s: float) -> None:
        if request_id not in self.ours:
            self.backlog.send(request_id, work_s, self.now)
            self.ours[request_id] = work_s

    @rule(request_id=ids)
    def computed(self, request_id: str) -> None:
        self.backlog.compute(request_id, self.now)
        self.ours.pop(request_id, None)

    @rule(queued_s=seconds)
    def heard(self, queued_s: float) -> None:
        self.backlog.heard(queued_s, self.now)
        self.heard_s = queued_s

    @rule(seconds=st.floats(0.0, 30.0))
    def wait(self, seconds: float) -> None:
        before_s = self.backlog.seconds(self.now)
        self.now += seconds
        assert self.backlog.seconds(self.now) <= before_s, "time alone adds nothing"

    @invariant()
    def within_what_is_known(self) -> None:
        estimate_s = self.backlog.seconds(self.now)
        assert 0.0 <= estimate_s <= sum(self.ours.values()) + self.heard_s + 1e-9
        assert estimate_s >= sum(list(self.ours.values())[1:]) - 1e-9, "they wait for the first"

    def teardown(self) -> None:
        for request_id in list(self.ours):
            self.computed(request_id)
        assert self.backlog.seconds(self.now + self.heard_s + 1e-6) == 0.0


TestBacklog = BacklogMachine.TestCase
TestBacklog.settings = settings(stateful_step_count=30)
