"""How a handler waits for one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from coordinator.detokenizer import Detokenizer, StopStrings
from coordinator.generation import CLIENT_LEFT, Generation
from coordinator.tracker import Ended, Produced

DEADLINE_S = 20.0


def generation_of(*stops: str) -> Generation:
    return Generation(
        request_id="r",
        rid="r",
        prompt_tokens=1,
        detokenizer=Detokenizer(lambda ids: "".join(map(chr, ids))),
        stops=StopStrings(stops),
        stop_token_ids=frozenset(),
        no_stop_trim=False,
        started=0.0,
    )


def produced(text: str) -> Produced:
    return Produced(
        request_id="r",
        request=None,  # type: ignore[arg-type]
        hashes=[],
        tokens=[ord(c) for c in text],
        attempt=1,
        route=None,  # type: ignore[arg-type]
        cached_tokens=0,
        fetched_tokens=0,
        transferred_pages=0,
    )


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 2 * DEADLINE_S))


def test_news_wake_a_stream_and_only_the_end_wakes_who_waits_for_it() -> None:
    async def test() -> None:
        stream, whole = generation_of(), generation_of()
        changed = asyncio.create_task(stream.changed(DEADLINE_S))
        finished = asyncio.create_task(whole.finished(DEADLINE_S))
        await asyncio.sleep(0)
        for generation in (stream, whole):
            generation.produced(produced("a"), 1.0)
        await changed
        assert not finished.done()
        whole.ended(Ended("r", "length"), 2.0)
        await finished
        assert whole.finish_reason == {"type": "length", "length": 1}

    run(test)


def test_news_that_came_before_are_not_waited_for_and_are_told_once() -> None:
    async def test() -> None:
        generation = generation_of()
        generation.produced(produced("a"), 1.0)
        await generation.changed(DEADLINE_S)
        with pytest.raises(asyncio.TimeoutError):
            await generation.changed(0.01)
        generation.produced(produced("b"), 1.0)
        await generation.changed(DEADLINE_S)

    run(test)


def test_a_stop_string_ends_the_wait() -> None:
    async def test() -> None:
        generation = generation_of("END")
        finished = asyncio.create_task(generation.finished(DEADLINE_S))
        await asyncio.sleep(0)
        assert generation.produced(produced("so END here"), 1.0)
        await finished
        assert generation.text == "so "

    run(test)


def test_the_wait_of_a_client_that_left_ends() -> None:
    async def test() -> None:
        generation = generation_of()
        finished = asyncio.create_task(generation.finished(DEADLINE_S))
        await asyncio.sleep(0)
        generation.abandon()
        await finished
        assert generation.error is not None and generation.error.status_code == CLIENT_LEFT
        generation.abandon()
        await generation.finished(DEADLINE_S)

    run(test)


def test_the_end_is_not_waited_for_without_bound() -> None:
    async def test() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await generation_of().finished(0.01)

    run(test)
