"""The modelled engine of the benchmarks: its time and its cache."""

from __future__ import annotations

from benchmarks.clusters.stub_engine import Prompt, StubEngine
from protocol.hashing import PageHasher
from protocol.ids import Attempt
from protocol.namespace import SHARED
from tests.support.coordinator.nodes import LAYOUT

PAGE = LAYOUT.page_size


def engine_of(num_pages: int = 100) -> StubEngine:
    """A token takes a second."""
    return StubEngine(PageHasher("model", LAYOUT), num_pages, float)


def prompt_of(engine: StubEngine, name: str, num_tokens: int) -> Prompt:
    return engine.prompt(Attempt(name, 1), list(range(num_tokens)), SHARED, 1)


def test_prompts_take_their_uncached_tokens_one_after_another() -> None:
    engine = engine_of()
    first, second = (prompt_of(engine, name, 4 * PAGE + 1) for name in "ab")
    engine.compute(first, 0.0)
    engine.compute(second, 1.0)
    assert engine.finished(0.0) == [] and engine.next_finish() == 4 * PAGE + 1
    # Looked at late: the second one began when the first one ended, and hits its four pages.
    assert engine.finished(4 * PAGE + 2.5) == [first, second]
    assert (first.cached_tokens, second.cached_tokens) == (0, 4 * PAGE)
    assert engine.counts.requests == 2 and engine.counts.requests_hit == 1
    assert engine.counts.computed_tokens == 4 * PAGE + 2
    assert engine.cache.num_held_pages == 0 and engine.cache.num_cached_pages == 4


def test_what_is_cancelled_takes_no_more_time_and_holds_nothing() -> None:
    engine = engine_of()
    first, second = prompt_of(engine, "a", 5 * PAGE), prompt_of(engine, "b", PAGE)
    for prompt in (first, second):
        engine.compute(prompt, 0.0)
    engine.finished(0.0)
    engine.cancel(first.attempt, 10.0)
    assert engine.finished(10.0) == [] and engine.next_finish() == 10.0 + PAGE
    assert engine.finished(10.0 + PAGE) == [second]
    assert engine.cache.num_held_pages == 0


def test_without_room_it_waits_for_a_release() -> None:
    engine = engine_of(num_pages=4)
    held, waiting = prompt_of(engine, "a", 3 * PAGE), prompt_of(engine, "b", 2 * PAGE)
    assert engine.acquire(held, 0.0)
    engine.compute(waiting, 0.0)
    assert engine.finished(50.0) == [] and engine.next_finish() is None
    engine.release(held)
    assert engine.finished(60.0) == []
    assert engine.finished(50.0 + 2 * PAGE) == [waiting]
