"""Pauses and aborts as the tracker and the core of a coordinator carry them out."""

from __future__ import annotations

import pytest

from coordinator.answers.answer import Answer
from coordinator.answers.request import Request
from coordinator.core.core import CHECK_EVERY_S, CoordinatorCore
from coordinator.core.instructions import AnswerEnded, Instruction, Send
from coordinator.core.patience import RETRY_WITHIN_S
from coordinator.core.pause import Pause
from coordinator.core.request_reports import goes_by
from coordinator.core.tracker import Tracker
from protocol.hashing import tokens_from_bytes
from protocol.messages import AbortRequest, Cancel, Generate, PauseSeen, SetPause
from protocol.sampling import Sampling
from tests.support.coordinator.cores import core_of
from tests.support.coordinator.nodes import Nodes, booked, load_of
from tests.support.coordinator.tracking import LONG, request, tick, tokens_of, tracker_of

OTHER = "tcp://other:1"


def generates(instructions: list[Instruction]) -> list[Generate]:
    messages = [one.message for one in instructions if isinstance(one, Send)]
    return [message for message in messages if isinstance(message, Generate)]


def cancels(instructions: list[Instruction]) -> list[Cancel]:
    messages = [one.message for one in instructions if isinstance(one, Send)]
    return [message for message in messages if isinstance(message, Cancel)]


def ended(instructions: list[Instruction]) -> list[Answer]:
    return [one.answer for one in instructions if isinstance(one, AnswerEnded)]


def running() -> tuple[Tracker, Nodes, Generate]:
    """A tracker with one request that was sent to d0."""
    nodes = Nodes("p0", "d0")
    tracker = tracker_of(nodes)
    (generate,) = generates(tracker.submit(request(), 0.0))
    return tracker, nodes, generate


@pytest.mark.parametrize("rid", ["a", "a_0", "a_12_3"])
def test_a_name_stands_for_itself_and_for_the_answers_of_a_batch(rid: str) -> None:
    assert goes_by("a", rid)


@pytest.mark.parametrize("rid", ["", "a_", "a_0_", "ab", "a_x", "a_0x", "b"])
def test_a_name_stands_for_no_other(rid: str) -> None:
    assert not goes_by("a", rid) and not goes_by("", rid)


def test_an_abort_keeps_the_answer_so_far_and_is_no_error() -> None:
    tracker, nodes, generate = running()
    tracker.tokens(tokens_of(generate.attempt, 7, 8), 0.1)
    assert tracker.abort("nobody", False, 0.2) == []
    instructions = tracker.abort("r", False, 0.2)
    assert cancels(instructions) == [Cancel(generate.attempt)]
    (answer,) = ended(instructions)
    assert answer.error is None and answer.finish_reason is not None
    assert answer.finish_reason.kind == "abort" and answer.output_ids == [7, 8]
    assert len(tracker) == 0 and booked(nodes.placement) == {}
    assert tracker.abort("r", True, 0.3) == []


def test_an_abort_ends_who_waits() -> None:
    nodes = Nodes("p0", "d0")
    tracker = tracker_of(nodes)
    nodes.heard("p0", load_of(queued_tokens=LONG), 0.0)
    assert generates(tracker.submit(request("waiting"), 0.0)) == []
    (answer,) = ended(tracker.abort("", True, 0.1))
    assert answer.output_ids == [] and len(nodes.queue) == 0


def test_after_a_pause_an_answer_goes_on_where_it_was() -> None:
    tracker, nodes, generate = running()
    tracker.tokens(tokens_of(generate.attempt, 7, 8), 0.1)
    assert cancels(tracker.pause(0.2)) == [Cancel(generate.attempt)]
    assert booked(nodes.placement) == {} and len(nodes.queue) == 1
    late = tracker.tokens(tokens_of(generate.attempt, 9, start=2), 0.25)
    assert cancels(late) and not ended(late), "tokens that were under way are computed again"
    assert tick(tracker, 0.3) == [] and tracker.submit(request("new"), 0.4) == []
    again, new = generates(tracker.resume(5.0))
    assert tokens_from_bytes(again.tokens) == [1, 2, 3, 7, 8]
    assert again.sampling == generate.sampling and again.max_new_tokens == 6
    assert new.attempt.request_id == "new"
    (answer,) = ended(tracker.tokens(tokens_of(again.attempt, 9, 0, finish="stop"), 5.1))
    assert answer.output_ids == [7, 8, 9, 0] and answer.num_attempts == 2


def test_a_pause_counts_for_no_limit() -> None:
    nodes = Nodes("p0", "d0")
    tracker = tracker_of(nodes)
    tracker.submit(request("old"), 0.0)
    tracker.pause(1.0)
    tracker.submit(request("new", now=50.0), 50.0)
    assert tracker.time_out(10.0, 100.0) == []
    tracker.resume(101.0)
    assert tracker.time_out(10.0, 109.9) == []
    assert [answer.rid for answer in ended(tracker.time_out(10.0, 110.1))] == ["old"]
    assert [answer.rid for answer in ended(tracker.time_out(10.0, 111.1))] == ["new"]


def test_a_node_that_is_lost_in_a_pause_ends_nobody_before_it_is_over() -> None:
    tracker, nodes, _ = running()
    tracker.pause(1.0)
    for name in ("p0", "d0"):
        assert tracker.node_lost(nodes.leave(name), 2.0) == []
    for now in (3.0, 3.0 + 2 * RETRY_WITHIN_S):
        assert tick(tracker, now) == []
    assert tracker.resume(100.0) == []
    nodes.join("d0", incarnation=2, now=101.0)
    assert len(generates(tick(tracker, 101.0))) == 1


def submit(core: CoordinatorCore, rid: str, now: float = 0.0) -> list[Instruction]:
    return core.submit(Request([1, 2, 3], Sampling(seed=1), 8, rid=rid), now)


def test_other_coordinators_are_obeyed_in_the_order_of_redis() -> None:
    core = core_of("d0")
    assert generates(submit(core, "a"))
    paused = core.handle(SetPause(5, "retract", OTHER, "q"), 0.1)
    assert cancels(paused) and paused[-1] == Send(OTHER, PauseSeen("q", "tcp://me:1"))
    for older in (Pause(4, None), Pause(5, None), Pause(0)):
        assert core.set_pause(older, 0.2) == []
    assert not generates(submit(core, "b", 0.3) + core.tick(0.3))
    assert core.num_running == 0 and core.num_waiting == 2
    wake_at = core.wake_at(0.31)
    assert wake_at is not None and wake_at >= 0.3 + CHECK_EVERY_S, "no busy waiting"
    assert not generates(core.set_pause(Pause(6, "in_place"), 0.4))
    assert len(generates(core.set_pause(Pause(7, None), 0.5))) == 2


def test_the_mode_abort_ends_what_is_there_and_lets_wait_what_comes() -> None:
    core = core_of("d0")
    submit(core, "a")
    assert [a.rid for a in ended(core.set_pause(Pause(1, "abort"), 0.1))] == ["a"]
    assert not generates(submit(core, "b", 0.2))
    assert len(generates(core.set_pause(Pause(2, None), 0.3))) == 1


def test_an_abort_of_another_coordinator_is_carried_out() -> None:
    core = core_of("d0")
    submit(core, "a")
    assert core.handle(AbortRequest("b"), 0.1) == []
    assert [a.rid for a in ended(core.handle(AbortRequest("a"), 0.1))] == ["a"]
