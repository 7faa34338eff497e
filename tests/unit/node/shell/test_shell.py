"""What a shell does for a core: streams, steps that fail, and what it tells."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from engine.errors import DeviceBroken
from node.core.leaving import SETTLE_S
from protocol.hashing import token_bytes
from protocol.ids import Attempt
from protocol.messages import AnyMessage, Failed, PrefillDone, Republish
from tests.support.node.poisoned_runner import POISON, Runner
from tests.support.node.recorded_shell import Peers, shell_of, turn
from tests.support.node.schedulers import (
    P0,
    asked_prefill,
    decode_scheduler,
    generate,
    prefill_scheduler,
)
from tests.support.node.untimed import untimed


def test_pages_stream_while_their_step_runs() -> None:
    scheduler, peers = prefill_scheduler(chunk=64), Peers()
    shell = shell_of(scheduler, Runner(ValueError("poison")), peers)
    for name in "ab":
        scheduler.handle(asked_prefill(name, 40), 0.0)
    turn(shell)
    assert [type(said) for said in peers.said] == [PrefillDone]
    said = ("stream", "layers 1", "layers 2", "finish")
    assert peers.told == [(what, name) for what in said for name in "ab"]
    peers.told.clear()
    turn(shell)
    assert peers.told == [(what, "b") for what in said], "a is finished and forgotten"


def test_a_step_that_failed_ends_the_stream_of_who_failed_it() -> None:
    scheduler, peers = prefill_scheduler(chunk=64), Peers()
    shell = shell_of(scheduler, Runner(ValueError("poison")), peers)
    scheduler.handle(asked_prefill("a", 20), 0.0)
    poisoned = msgspec.structs.replace(asked_prefill("b", 0), tokens=token_bytes([POISON] * 40))
    scheduler.handle(poisoned, 0.0)
    turn(shell)
    failed, done = peers.said
    assert untimed(done) == PrefillDone(Attempt("a", 1), [5], 0, P0)
    said = ("stream", "layers 1")
    expected = [(what, name) for what in said for name in "ab"]
    assert peers.told == [*expected, ("cancel", "b"), ("finish", "a")]
    assert isinstance(failed, Failed) and failed.attempt == Attempt("b", 1)
    turn(shell)
    assert scheduler.load().held_pages == 2, "those of a are still being sent"


def test_a_broken_device_finishes_no_stream() -> None:
    scheduler, peers = prefill_scheduler(), Peers()
    shell = shell_of(scheduler, Runner(DeviceBroken("illegal memory access")), peers)
    poisoned = msgspec.structs.replace(asked_prefill("b", 0), tokens=token_bytes([POISON] * 20))
    scheduler.handle(poisoned, 0.0)
    with pytest.raises(DeviceBroken):
        turn(shell)
    assert peers.told == [("stream", "b"), ("layers 1", "b")]


def test_a_heartbeat_tells_of_every_link() -> None:
    scheduler = decode_scheduler()
    peers = Peers()
    turn(shell_of(scheduler, Runner(ValueError("poison")), peers))
    (load,) = peers.loads
    assert load.counters.bytes_sent == 12_007
    assert load.link_bytes_per_s == 3e6, "the mean of those that were measured"
    assert [link.peer for link in load.links] == ["p2", "p1", "p0", "p3"]
    assert load.free_pages == scheduler.load().free_pages


def test_compiles_before_the_loop_do_not_count_and_later_ones_do() -> None:
    runner, peers = Runner(ValueError("never")), Peers()
    runner.num_compiles = 40
    shell = shell_of(decode_scheduler(), runner, peers)
    for num_compiles in (40, 41, 43):
        runner.num_compiles = num_compiles
        turn(shell)
        assert peers.loads[-1].counters.compiles_while_serving == num_compiles - 40


def test_a_wish_to_republish_reaches_the_publisher() -> None:
    peers = Peers()
    peers.inbox.append(Republish())
    turn(shell_of(decode_scheduler(), Runner(ValueError("poison")), peers))
    assert peers.num_republished == 1


def test_what_a_turn_made_findable_is_published_at_its_end() -> None:
    scheduler, peers = decode_scheduler(), Peers()
    shell = shell_of(scheduler, Runner(ValueError("poison")), peers)
    scheduler.handle(generate("r", [1] * 40, 1, prefill=""), 0.0)
    shell.begin_turn()
    assert shell.is_computing and not peers.changes
    shell.end_turn()
    turn(shell)
    assert not shell.is_computing
    assert sum(len(change.stored) for change in peers.changes) == 2


def test_news_of_transfers_reach_the_core_in_the_next_turn() -> None:
    """Only the newest of several progresses, and nothing after the transfer was aborted."""
    scheduler, peers = decode_scheduler(), Peers()
    shell = shell_of(scheduler, Runner(ValueError("poison")), peers)
    attempt = Attempt("r", 1)
    peers.inbox.append(generate("r", list(range(1, 101))))
    turn(shell)
    for num_pages in (1, 3):
        peers.on_progress[attempt](num_pages)
    turn(shell)
    assert scheduler.load().counters.pages_received == 3
    peers.on_done[attempt]("peer lost")
    turn(shell)
    assert isinstance(peers.said[-1], Failed) and peers.said[-1].reason == "peer lost"
    assert peers.told == [("abort", "r")]
    assert scheduler.load().held_pages == 0


def test_a_shell_that_is_told_to_leave_ends_when_its_core_may() -> None:
    now = [0.0]
    scheduler, peers = prefill_scheduler(chunk=64), Leaves(now)
    shell = shell_of(scheduler, Runner(ValueError("never")), peers, lambda: now[0])
    peers.inbox.append(asked_prefill("a", 20))
    shell.leave()
    shell.run()
    assert [type(said) for said in peers.said] == [PrefillDone], "it was on its way"
    assert peers.num_told_draining == 1 and len(peers.on_marked) == 1
    assert scheduler.is_idle and now[0] >= SETTLE_S


def test_the_second_wish_ends_a_shell_at_once() -> None:
    scheduler, peers = decode_scheduler(), Peers()
    shell = shell_of(scheduler, Runner(ValueError("never")), peers)
    scheduler.handle(generate("a", [1] * 20), 0.0)
    shell.leave()
    shell.leave()
    shell.run()
    assert not scheduler.is_idle


class Leaves(Peers):
    """Peers of a node that leaves: Redis takes its mark, pages leave, and a turn takes a while."""

    def __init__(self, now: list[float]) -> None:
        super().__init__()
        self._now = now

    def mark_draining(self, on_done: Callable[[bool], None]) -> None:
        super().mark_draining(on_done)
        on_done(True)

    def drain(self, timeout_s: float) -> list[AnyMessage]:
        self._now[0] += 0.1
        for on_done in self.on_done.values():
            on_done("")
        self.on_done.clear()
        return super().drain(timeout_s)
