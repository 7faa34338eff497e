"""Steps that fail, steps that are started ahead, and how long they take."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from engine.batches.sequence import Slice
from engine.errors import DeviceBroken
from node.shell.steps import Steps
from protocol.messages import AnyMessage, Cancel, Failed, TokensOut
from protocol.sampling import Sampling
from tests.support.node.poisoned_runner import NO_NUMBERS, POISON, Runner
from tests.support.node.recorded_shell import Peers, shell_of, turn
from tests.support.node.schedulers import GREEDY, decode_scheduler, generate


def test_a_request_that_breaks_a_step_harms_nobody_else() -> None:
    scheduler, peers = decode_scheduler(), Peers()
    shell = shell_of(scheduler, Runner(ValueError("poison")), peers)
    for name, token in (("good", 1), ("bad", POISON), ("fine", 2)):
        scheduler.handle(generate(name, [token] * 5, prefill=""), 0.0)
    turn(shell)
    failed, tokens = peers.said
    assert isinstance(failed, Failed) and failed.attempt.request_id == "bad"
    assert "ValueError" in failed.reason
    assert isinstance(tokens, TokensOut)
    assert [out.attempt.request_id for out in tokens.outs] == ["good", "fine"]
    for _ in range(5):  # a request like it, again and again, does not end the node
        scheduler.handle(generate("bad", [POISON] * 5, prefill=""), 0.0)
        turn(shell)
    assert len([said for said in peers.said if isinstance(said, Failed)]) == 1 + 5
    assert scheduler.load().held_pages == 0


@pytest.mark.parametrize("others_break_it", [False, True])
def test_a_request_without_numbers_fails_alone(others_break_it: bool) -> None:
    """Also where its step is computed again, each request alone."""
    scheduler, peers = decode_scheduler(), Peers()
    shell = shell_of(scheduler, Runner(ValueError("poison")), peers)
    asked = {"good": 1, "sick": NO_NUMBERS, "fine": 2} | (
        {"bad": POISON} if others_break_it else {}
    )
    for name, token in asked.items():
        scheduler.handle(generate(name, [token] * 5, prefill=""), 0.0)
    turn(shell)
    failed = {m.attempt.request_id: m for m in peers.said if isinstance(m, Failed)}
    assert failed.keys() == asked.keys() - {"good", "fine"}
    assert failed["sick"].kind == "node"
    if not others_break_it:
        assert "not numbers" in failed["sick"].reason
    (tokens,) = [m for m in peers.said if isinstance(m, TokensOut)]
    assert [out.attempt.request_id for out in tokens.outs] == ["good", "fine"]
    assert all(out.tokens == [5] for out in tokens.outs)


def test_a_broken_device_ends_the_node() -> None:
    scheduler = decode_scheduler()
    shell = shell_of(scheduler, Runner(DeviceBroken("illegal memory access")))
    scheduler.handle(generate("r", [POISON] * 5, prefill=""), 0.0)
    with pytest.raises(DeviceBroken):
        turn(shell)


class Life:
    """A whole life of a decode node: it is told `messages`, and stops when it has nothing to do."""

    def __init__(self, runner: Runner, messages: list[AnyMessage]) -> None:
        self.peers = Peers()
        self.peers.inbox = messages
        scheduler = decode_scheduler(num_pages=16)
        shell = shell_of(scheduler, runner, self.peers)
        turn(shell)
        while shell.is_computing or scheduler.load().num_running:
            turn(shell)
        assert scheduler.load().held_pages == 0
        self.ends = {
            out.attempt.request_id: out.finish
            for said in self.peers.said
            if isinstance(said, TokensOut)
            for out in said.outs
        } | {
            said.attempt.request_id: said.reason
            for said in self.peers.said
            if isinstance(said, Failed)
        }


def started_and_awaited(*numbers: int) -> list[str]:
    """1: step 1 is started; -1: it is waited for."""
    return [f"start {n}" if n > 0 else f"wait {-n}" for n in numbers]


PENALTY = Sampling(frequency_penalty=0.5)


@pytest.mark.parametrize(
    ("runs_ahead", "sampling", "expected"),
    [
        (False, GREEDY, (1, -1, 2, -2, 3, -3)),
        (True, GREEDY, (1, 2, -1, 3, -2, -3)),
        (True, PENALTY, (1, 2, -1, 3, -2, -3)),
    ],
)
def test_a_step_is_started_before_the_tokens_of_the_one_before_are_known(
    runs_ahead: bool, sampling: Sampling, expected: tuple[int, ...]
) -> None:
    """Where the device can. None is started whose tokens cannot be wanted."""
    runner = Runner(ValueError("poison"), runs_ahead)
    life = Life(runner, [generate("r", [1] * 5, 3, prefill="", sampling=sampling)])
    assert runner.told == [*started_and_awaited(*expected), "end 1"]
    assert life.ends == {"r": "length"}


def test_a_stop_token_costs_a_step_that_runs_ahead_and_no_more() -> None:
    runner = Runner(ValueError("poison"), runs_ahead=True)
    life = Life(runner, [generate("r", [1] * 5, 9, prefill="", stops=[5])])
    assert runner.told == [*started_and_awaited(1, 2, -1, -2), "end 1"]
    assert life.ends == {"r": "stop"}
    assert sum(len(said.outs) for said in life.peers.said if isinstance(said, TokensOut)) == 1


@pytest.mark.parametrize("fails_late", [False, True])
@pytest.mark.parametrize("runs_ahead", [False, True])
def test_who_breaks_a_step_while_another_is_under_way_harms_nobody_else(
    runs_ahead: bool, fails_late: bool
) -> None:
    """The poisoned prompt is longer than a step: it joins the answers that run ahead."""
    runner = Runner(ValueError("poison"), runs_ahead, fails_late)
    good = [generate(name, [1] * 5, 6, prefill="") for name in ("a", "b")]
    poisoned = generate("bad", [1] * 60 + [POISON] * 5, 6, prefill="")
    life = Life(runner, [good[0], poisoned, good[1]])
    assert life.ends == {"a": "length", "b": "length", "bad": "a step failed on d0: ValueError"}


def test_a_step_that_failed_late_is_not_computed_again_for_who_has_left() -> None:
    """Somebody else may have the pages of an answer that was cancelled meanwhile."""

    class Recording(Runner):
        """Notes whose slices are computed alone, by their first token."""

        def start(self, slices: Any, on_layer: Any = None, after: Any = None) -> Any:
            if len(slices) == 1:
                alone.append(slices[0].token_ids[0])
            return super().start(slices, on_layer, after)

    alone: list[int] = []
    runner = Recording(ValueError("poison"), runs_ahead=True, fails_late=True)
    left = generate("left", [1] * 5, 6, prefill="")
    peers = Peers()
    peers.inbox = [
        left,
        generate("stays", [2] * 5, 6, prefill=""),
        generate("bad", [POISON] * 5, 6, prefill=""),
    ]
    shell = shell_of(decode_scheduler(), runner, peers)
    turn(shell)  # the step stays under way
    assert alone == []
    peers.inbox = [Cancel(left.attempt)]
    turn(shell)
    assert alone == [2, POISON]


def test_busy_time_is_that_of_steps_failed_ones_included() -> None:
    scheduler = decode_scheduler()
    steps = Steps(Runner(ValueError("poison")), itertools.count(0.0, 0.5).__next__)
    scheduler.handle(generate("bad", [POISON] * 5, prefill=""), 0.0)
    slices, _ = scheduler.next_batch(0.0)
    steps.start(slices, lambda _: None)
    assert steps.settle().failed == {0}
    assert steps.busy_s == 1.0, "from its start to its end, the second try included"
    assert steps.rates.prefill_tokens_per_s == steps.rates.step_s == 0.0


def test_a_step_that_waited_for_the_one_before_took_the_time_since_its_end() -> None:
    runner: Any = Runner(ValueError("poison"), runs_ahead=True)
    # Each step looks at the clock before and after its start, and at its end.
    clock = iter([0.0, 0.5, 1.0, 1.5, 10.0, 14.0, 20.0, 20.5, 26.0])
    steps = Steps(runner, lambda: next(clock))
    parts = [Slice([1], 0, [0], GREEDY)]
    for _ in range(2):  # started at 0 and 1, over at 10 and 14
        steps.start(parts, lambda _: None)
    for expected in (10.0, 0.8 * 10.0 + 0.2 * 4.0):
        steps.settle()
        assert steps.rates.step_s == pytest.approx(expected)
    steps.start(parts, lambda _: None)
    steps.settle()
    assert steps.busy_s == 14.0 + 6.0
