"""A node that was told to stop ends when it has finished what it had, and never much later."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.cache.prefix_cache import PrefixCache
from node.core.core import NodeCore
from node.core.instructions import DrainMarked, MarkDraining, PagesSent, ToldToLeave
from node.core.leaving import SETTLE_S, Leaving
from protocol.hashing import join_hashes
from protocol.ids import Attempt
from protocol.messages import Cancel, Fetch
from tests.support.coordinator.nodes import LAYOUT
from tests.support.node.schedulers import (
    COORDINATOR,
    D0,
    PREFILL,
    decode_scheduler,
    generate,
)

TIMEOUT_S = 20.0


def leaving_since(began_at: float) -> Leaving:
    leaving = Leaving(TIMEOUT_S)
    leaving.begin(began_at)
    return leaving


def test_a_node_that_was_not_told_to_stop_goes_on() -> None:
    leaving = Leaving(TIMEOUT_S)
    assert not leaving.has_begun and not leaving.is_over(True, 1e9)


def test_it_ends_when_nothing_has_come_for_a_while_after_the_mark() -> None:
    leaving = leaving_since(100.0)
    assert not leaving.is_over(True, 100.0 + SETTLE_S), "nobody knows yet that it drains"
    leaving.marked(is_written=True)
    assert not leaving.is_over(True, 105.0)
    assert not leaving.is_over(True, 104.9 + SETTLE_S)
    assert leaving.is_over(True, 105.0 + SETTLE_S)


def test_work_that_was_on_its_way_begins_the_wait_anew() -> None:
    leaving = leaving_since(100.0)
    leaving.marked(is_written=True)
    assert not leaving.is_over(True, 100.0)
    assert not leaving.is_over(False, 101.0)
    assert not leaving.is_over(True, 100.5 + SETTLE_S)
    assert leaving.is_over(True, 100.5 + 2 * SETTLE_S)


@pytest.mark.parametrize("is_marked", [False, True])
def test_it_waits_no_longer_than_it_may(is_marked: bool) -> None:
    leaving = leaving_since(100.0)
    if is_marked:
        leaving.marked(is_written=True)
    assert not leaving.is_over(False, 99.9 + TIMEOUT_S)
    leaving.begin(110.0)
    assert leaving.is_over(False, 100.0 + TIMEOUT_S), "a second wish does not begin it anew"


def test_it_ends_at_once_when_requests_would_come_for_ever() -> None:
    leaving = leaving_since(100.0)
    leaving.marked(is_written=False)
    assert leaving.is_over(False, 100.0)


# The core


def core_of(cache: PrefixCache | None = None) -> NodeCore:
    cache = cache or PrefixCache(64, LAYOUT.page_size)
    return NodeCore(D0, cache, decode_scheduler(cache=cache), TIMEOUT_S)


def ends_within(core: NodeCore, since: float, until: float) -> bool:
    """Asks after every turn, as the shell does."""
    return any(core.may_end(since + i / 10) for i in range(round((until - since) * 10) + 1))


def test_a_core_asks_for_one_mark_and_refuses_nothing() -> None:
    core = core_of()
    assert not core.may_end(1e9)
    assert core.handle(ToldToLeave(), 0.0) == [MarkDraining()]
    assert core.handle(ToldToLeave(), 0.1) == []
    assert core.handle(DrainMarked(True), 0.2) == []
    assert core.handle(generate("late", [1] * 20), 0.3) == []
    assert core.load().num_waiting == 1, "it was on its way"


def test_a_core_without_work_ends_soon() -> None:
    core = core_of()
    core.handle(ToldToLeave(), 0.0)
    core.handle(DrainMarked(True), 0.0)
    assert not ends_within(core, 0.0, SETTLE_S - 0.1)
    assert ends_within(core, SETTLE_S, SETTLE_S)


def waits(core: NodeCore) -> None:
    core.handle(generate("a", [1] * 20), 0.0)


def receives(core: NodeCore) -> None:
    core.handle(generate("a", [1] * 20), 0.0)
    core.next_batch(0.0)


@pytest.mark.parametrize("work", [waits, receives])
def test_a_core_with_work_ends_after_it(work: Callable[[NodeCore], None]) -> None:
    core = core_of()
    work(core)
    core.handle(ToldToLeave(), 0.0)
    core.handle(DrainMarked(True), 0.0)
    assert not ends_within(core, 0.0, 10.0)
    core.handle(Cancel(Attempt("a", 1)), 10.0)
    assert ends_within(core, 10.1, 10.2 + SETTLE_S)


def test_a_core_waits_until_its_pages_have_left() -> None:
    cache = PrefixCache(64, LAYOUT.page_size)
    core = core_of(cache)
    hashes = [b"%16d" % i for i in range(2)]
    held = cache.acquire(hashes, 2, 0.0)
    assert held is not None
    cache.commit(held, hashes, 0.0)
    cache.release(held)
    fetch = Fetch(Attempt("a", 1), join_hashes(hashes), 0, COORDINATOR, (PREFILL,))
    core.handle(fetch, 0.0)
    core.handle(ToldToLeave(), 0.0)
    core.handle(DrainMarked(True), 0.0)
    assert not ends_within(core, 0.0, 10.0)
    core.handle(PagesSent(Attempt("a", 1), is_fetch=True), 10.0)
    assert ends_within(core, 10.1, 10.2 + SETTLE_S)
