"""While the device computes a long step, the next one is planned late: what comes is in it."""

from __future__ import annotations

import pytest

from node.shell.shell import MIN_SPARE_S, NodeShell
from node.shell.steps import KNOWN_SHARE, StepOutcome
from protocol.messages import AnyMessage, PrefillDone
from tests.support.node.poisoned_runner import Runner
from tests.support.node.recorded_shell import Peers, shell_of, turn
from tests.support.node.schedulers import asked_prefill, prefill_scheduler

CHUNK = 64
CHUNK_S = 0.064
"""A device that computes 1,000 tokens a second."""


class Clocked(Peers):
    """Peers whose messages come at their time, on a clock that moves while the node waits."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.to_come: list[tuple[float, AnyMessage]] = []
        self.waits_s: list[float] = []

    def drain(self, timeout_s: float) -> list[AnyMessage]:
        ends = self.now + timeout_s
        if timeout_s:
            self.waits_s.append(timeout_s)
            self.now = min([ends, *(max(self.now, at) for at, _ in self.to_come)])
        came = [message for at, message in self.to_come if at <= self.now]
        self.to_come = [(at, message) for at, message in self.to_come if at > self.now]
        return came


def busy_node(runs_ahead: bool = True) -> tuple[NodeShell, Clocked, Runner]:
    """A node whose device has the first of many chunks of a prompt, and its rate is known."""
    peers, runner = Clocked(), Runner(ValueError("never"), runs_ahead)
    scheduler = prefill_scheduler(num_pages=256, chunk=CHUNK)
    shell = shell_of(scheduler, runner, peers, lambda: peers.now)
    scheduler.handle(asked_prefill("a", 20 * CHUNK), 0.0)
    turn(shell)
    for _ in range(2):
        settle_in(shell, peers)
        turn(shell)
    peers.waits_s.clear()
    return shell, peers, runner


def settle_in(shell: NodeShell, peers: Clocked) -> None:
    """Lets the oldest step take as long as its chunk needs."""
    settle = shell._steps.settle

    def settled() -> StepOutcome:
        began = max(shell._steps._started[0].began, shell._steps._ended)
        peers.now = max(peers.now, began + CHUNK_S)
        return settle()

    shell._steps.settle = settled  # type: ignore[method-assign]


def test_a_prompt_that_comes_during_a_step_is_in_the_next_one() -> None:
    shell, peers, runner = busy_node()
    peers.to_come = [(peers.now + 0.3 * CHUNK_S, asked_prefill("b", 10))]
    num_started = len([told for told in runner.told if told.startswith("start")])
    shell.begin_turn()
    assert [len(part.token_ids) for part in shell._planned] == [CHUNK - 10, 10]
    assert len([told for told in runner.told if told.startswith("start")]) == num_started + 1
    shell.end_turn()
    turn(shell)
    assert any(isinstance(said, PrefillDone) for said in peers.said)


def test_the_next_step_is_started_before_the_device_is_done() -> None:
    shell, peers, _ = busy_node()
    began = peers.now
    shell.begin_turn()
    assert began < peers.now <= began + KNOWN_SHARE * CHUNK_S + 1e-9 < began + CHUNK_S
    assert peers.waits_s == [pytest.approx(KNOWN_SHARE * CHUNK_S)]


def test_a_flood_of_messages_does_not_make_it_late() -> None:
    shell, peers, _ = busy_node()
    began = peers.now
    peers.to_come = [(began + i * 0.0001, asked_prefill("b", 10)) for i in range(1_000)]
    shell.begin_turn()
    assert peers.now <= began + KNOWN_SHARE * CHUNK_S - MIN_SPARE_S + 0.0002


def test_a_node_that_waits_for_each_step_plans_at_once() -> None:
    shell, peers, _ = busy_node(runs_ahead=False)
    shell.begin_turn()
    assert peers.waits_s == []
