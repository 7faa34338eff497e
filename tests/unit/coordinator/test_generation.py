"""How a handler waits for one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace

import pytest

from coordinator.answers.detokenizer import Detokenizer, StopStrings
from coordinator.answers.generation import CLIENT_LEFT, Generation
from coordinator.answers.logprobs import AnswerLogprobs
from coordinator.core.tracker import Ended, Produced
from coordinator.http.schema import LogprobParams
from protocol.sampling import TokenLogprobs

DEADLINE_S = 20.0


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def generation_of(*stops: str, logprobs: LogprobParams | None = None) -> Generation:
    return Generation(
        request_id="r",
        rid="r",
        prompt_tokens=1,
        detokenizer=Detokenizer(decode),
        stops=StopStrings(stops),
        end_token_ids=frozenset(),
        no_stop_trim=False,
        started=0.0,
        logprobs=AnswerLogprobs(logprobs, decode) if logprobs is not None else None,
    )


def logprobs_of(token: int) -> TokenLogprobs:
    """Of a token whose second likeliest is the one behind it; the wanted ones are x and y."""
    return TokenLogprobs(-token / 8, [(token, -token / 8), (token + 1, -99.0)], [-1.0, -2.0])


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
        logprobs=[logprobs_of(ord(c)) for c in text],
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


WANTED = LogprobParams(num_top=2, token_ids=(ord("x"), ord("y")), with_text=True)


def test_logprobs_are_cumulative_and_in_the_lists_of_sglang() -> None:
    generation = generation_of(logprobs=WANTED)
    generation.produced(produced("a"), 1.0)
    assert len(generation.result(1.0)["meta_info"]["output_token_logprobs"]) == 1
    generation.produced(produced("bc"), 1.0)
    meta = generation.result(1.0)["meta_info"]
    a, b, c = map(ord, "abc")
    assert meta["output_token_logprobs"] == [(-a / 8, a, "a"), (-b / 8, b, "b"), (-c / 8, c, "c")]
    assert meta["output_top_logprobs"][2] == [(-c / 8, c, "c"), (-99.0, c + 1, "d")]
    assert meta["output_token_ids_logprobs"] == [[(-1.0, 120, "x"), (-2.0, 121, "y")]] * 3
    inputs = [meta[f"input_{name}_logprobs"] for name in ("token", "top", "token_ids")]
    assert inputs == [[], [], []]


def test_logprobs_have_no_texts_and_no_lists_that_nobody_asked_for() -> None:
    generation = generation_of(logprobs=LogprobParams())
    one = produced("a")
    generation.produced(replace(one, logprobs=[TokenLogprobs(-0.5)]), 1.0)
    meta = generation.result(1.0)["meta_info"]
    assert meta["output_token_logprobs"] == [(-0.5, ord("a"), None)]
    assert not {"output_top_logprobs", "output_token_ids_logprobs"} & meta.keys()
    silent = generation_of()
    silent.produced(one, 1.0)
    assert "output_token_logprobs" not in silent.result(1.0)["meta_info"]


def test_logprobs_end_with_the_token_that_completes_a_stop_string() -> None:
    generation = generation_of("END", logprobs=WANTED)
    assert generation.produced(produced("so END and more"), 1.0)
    result = generation.result(1.0)
    ids = [entry[1] for entry in result["meta_info"]["output_token_logprobs"]]
    assert ids == result["output_ids"] == list(map(ord, "so END"))
