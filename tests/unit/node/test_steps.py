"""Steps that fail, steps that are started ahead, and how long they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from engine.cache.prefix_cache import PrefixCache
from engine.errors import DeviceBroken
from engine.steps.sequence import Sampled, Slice
from engine.steps.step import OnLayer, Step
from kvtransfer.transport import LinkStats
from node.shell.shell import NodeShell
from node.shell.steps import Steps
from protocol.ids import Node
from protocol.messages import AnyMessage, Failed, Message, TokensOut
from protocol.sampling import Sampling
from tests.support.played import POISON, Peers, Runner, shell_of, step_of
from tests.support.world import GREEDY, decode_scheduler, generate


def test_a_request_that_breaks_a_step_harms_nobody_else() -> None:
    scheduler, peers = decode_scheduler(), Peers()
    shell = shell_of(scheduler, ValueError("poison"), peers)
    for name, token in (("good", 1), ("bad", POISON), ("fine", 2)):
        scheduler.handle(generate(name, [token] * 5, prefill=""), 0.0)
    assert step_of(scheduler, shell) == 3
    failed, tokens = peers.said
    assert isinstance(failed, Failed) and failed.attempt.request_id == "bad"
    assert "ValueError" in failed.reason
    assert isinstance(tokens, TokensOut)
    assert [out.attempt.request_id for out in tokens.outs] == ["good", "fine"]
    for _ in range(5):  # a request like it, again and again, does not end the node
        scheduler.handle(generate("bad", [POISON] * 5, prefill=""), 0.0)
        step_of(scheduler, shell)
    assert len([said for said in peers.said if isinstance(said, Failed)]) == 1 + 5
    assert scheduler.load().held_pages == 0


def test_a_broken_device_ends_the_node() -> None:
    scheduler = decode_scheduler()
    shell = shell_of(scheduler, DeviceBroken("illegal memory access"))
    scheduler.handle(generate("r", [POISON] * 5, prefill=""), 0.0)
    with pytest.raises(DeviceBroken):
        step_of(scheduler, shell)


class Life:
    """A whole life of a decode node: it is told `messages`, and stops when it has nothing to do."""

    def __init__(self, runner: Runner, messages: list[AnyMessage]) -> None:
        self.peers, self._messages = Peers(), messages
        me, cache = self, PrefixCache(16)

        class Outside(Peers):
            """Of the loop: its channel, publisher and heartbeats."""

            def send(self, address: str, message: Message) -> None:
                me.peers.said.append(message)

            def drain(self, timeout_s: float) -> list[AnyMessage]:
                if timeout_s > 0 and not me._messages:
                    me._shell.stop()
                told, me._messages = me._messages, []
                return told

            def links(self) -> list[LinkStats]:
                return []

            def publish(self, changes: object) -> None:
                pass

            def update(self, load: object) -> None:
                pass

        outside: Any = Outside()
        scheduler: Any = decode_scheduler(cache=cache)
        fake: Any = runner
        self._shell = NodeShell(
            Node("d0", 1), outside, scheduler, cache, fake, outside, outside, outside
        )
        self._shell.run()
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
    """Where the device can, also with penalties, whose counts are on the device. None is started
    whose tokens cannot be wanted."""
    runner = Runner(ValueError("poison"), runs_ahead)
    life = Life(runner, [generate("r", [1] * 5, 3, prefill="", sampling=sampling)])
    assert runner.told == started_and_awaited(*expected)
    assert life.ends == {"r": "length"}


def test_a_stop_token_costs_a_step_that_runs_ahead_and_no_more() -> None:
    runner = Runner(ValueError("poison"), runs_ahead=True)
    life = Life(runner, [generate("r", [1] * 5, 9, prefill="", stops=[5])])
    assert runner.told == started_and_awaited(1, 2, -1, -2)
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


class Device:
    """Time passes only in it: a step takes `seconds` from when the one before it is over."""

    runs_ahead = True

    def __init__(self, *seconds: float) -> None:
        self.now = 0.0
        self.ended: list[int] = []
        self.compiles = False
        self.fails = False
        self._seconds = iter(seconds)
        self._free_at = 0.0

    def start(
        self, slices: Sequence[Slice], on_layer: OnLayer | None = None, after: Step | None = None
    ) -> Step:
        if self.fails:
            raise ValueError("it fails")
        self._free_at = max(self._free_at, self.now) + next(self._seconds)
        return DeviceWork(slices, self, self._free_at, self.compiles)

    def end_sequence(self, sequence_id: int) -> None:
        self.ended.append(sequence_id)

    def clock(self) -> float:
        return self.now


@dataclass(frozen=True)
class DeviceWork:
    slices: Sequence[Slice]
    device: Device
    over_at: float
    has_compiled: bool

    def sampled(self) -> list[Sampled | None]:
        self.device.now = max(self.device.now, self.over_at)
        return [Sampled((5,)) if part.sampling else None for part in self.slices]


SINGLE = [Slice([1], 0, [0], GREEDY)]
CHUNK = [Slice([1] * 100, 0, [0], None)]


def steps_on(device: Device) -> Steps:
    return Steps(device, device.clock)


def test_busy_time_is_that_of_steps_failed_ones_included() -> None:
    device = Device(3.0)
    steps = steps_on(device)
    device.fails = True
    assert not steps.start(SINGLE, lambda _: None)
    device.fails = False
    assert steps.settle().sampled == [Sampled((5,))]
    assert steps.busy_s == 3.0, "from its start to its end, the second try included"
    assert steps.rates.prefill_tokens_per_s == steps.rates.step_s == 0.0


def test_a_step_that_waited_for_the_one_before_took_the_time_since_its_end() -> None:
    device = Device(10.0, 4.0, 6.0)
    steps = steps_on(device)
    for _ in range(2):
        steps.start(SINGLE, lambda _: None)
    for expected in (10.0, 0.8 * 10.0 + 0.2 * 4.0):
        steps.settle()
        assert steps.rates.step_s == pytest.approx(expected)
    device.now = 20.0
    steps.start(SINGLE, lambda _: None)
    steps.settle()
    assert steps.busy_s == 14.0 + 6.0


def test_a_chunk_that_samples_nothing_takes_its_time() -> None:
    """It is launched long before it is over."""
    steps = steps_on(Device(2.0, 4.0))
    steps.start(CHUNK, lambda _: None)
    steps.start(CHUNK, lambda _: None)
    steps.settle()
    assert steps.rates.prefill_tokens_per_s == 100 / 2.0
    steps.settle()
    assert steps.rates.prefill_tokens_per_s == pytest.approx(0.8 * 50 + 0.2 * 25)


@pytest.mark.parametrize("slices", [SINGLE, CHUNK])
def test_a_step_that_compiled_is_no_measure(slices: list[Slice]) -> None:
    device = Device(100.0, 2.0)
    steps = steps_on(device)
    device.compiles = True
    steps.start(slices, lambda _: None)
    device.compiles = False
    steps.start(slices, lambda _: None)
    steps.settle()
    assert steps.rates.prefill_tokens_per_s == steps.rates.step_s == 0.0
    steps.settle()
    assert steps.rates.prefill_tokens_per_s == (50.0 if slices is CHUNK else 0.0)
    assert steps.rates.step_s == (0.0 if slices is CHUNK else 2.0)
    assert steps.busy_s == 102.0, "it was busy all the same"


def of_sequence(*sequence_ids: int) -> list[Slice]:
    return [Slice([1], 0, [0], GREEDY, sequence_id=i) for i in sequence_ids]


def test_a_sequence_is_forgotten_when_no_started_step_has_a_slice_of_it() -> None:
    device = Device(1.0, 1.0)
    steps = steps_on(device)
    steps.start(of_sequence(1, 2), lambda _: None)
    steps.start(of_sequence(2, 3), lambda _: None)
    for sequence_id in (1, 2, 9):
        steps.end_sequence(sequence_id)
    assert device.ended == [9]
    steps.settle()
    assert device.ended == [9, 1]
    steps.settle()
    assert device.ended == [9, 1, 2]


def test_a_sequence_that_ended_is_not_computed_again() -> None:
    """Its pages may be another one's."""
    device = Device(1.0, 1.0)
    steps = steps_on(device)
    steps.start(of_sequence(1), lambda _: None)
    device.fails = True
    steps.start(of_sequence(1, 2), lambda _: None)
    device.fails = False
    steps.settle()
    steps.end_sequence(1)
    outcome = steps.settle()
    assert (outcome.sampled, outcome.failed) == ([None, Sampled((5,))], frozenset())
    assert device.ended == [1]
