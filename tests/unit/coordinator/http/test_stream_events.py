"""Events of a stream: put together from bytes, they say what the response object says."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from coordinator.answers.answer import Answer, NewTokens
from coordinator.answers.request import Request
from coordinator.http.native.events import StreamEvents
from coordinator.http.native.sglang import SGLangFormatter
from protocol.sampling import Sampling, TokenLogprobs
from tests.support.coordinator.nodes import Nodes, demand_of
from tests.support.models.tokenizers import character_pieces

ROUTE = Nodes("p0", "d0").placement.route(demand_of(100), 0.0)
PIECES = character_pieces()
STEPS = ('a"', "b\\", "\n\x01", "c", "dE", "N", "f\t", "g")
"""What comes at once; much of it JSON escapes, and some is held back as it may become END."""


def answer_of(with_logprobs: bool) -> Answer:
    sampling = Sampling(num_top_logprobs=1 if with_logprobs else -1)
    return Answer(Request([1, 2], sampling, 99, [], stop_strings=["END"], pieces=PIECES), "r", 0.0)


def grow(answer: Answer, text: str, number: int) -> None:
    tokens = [ord(character) for character in text]
    logprobs = [TokenLogprobs(-1.0, [(token, -1.0)], []) for token in tokens]
    # The second half comes from another attempt, over another route.
    attempt = 1 if number < len(STEPS) // 2 else 2
    route = ROUTE if attempt == 1 else msgspec.structs.replace(ROUTE, reason="again")
    answer.grow(NewTokens(tokens, logprobs, 0, 0, number), route, attempt, 1.0)


def read(event: bytes) -> Any:
    assert event.startswith(b"data: ") and event.endswith(b"\n\n")
    return json.loads(event[6:])


@pytest.mark.parametrize("with_logprobs", (False, True))
@pytest.mark.parametrize("extra", ({}, {"index": 3}))
def test_a_cumulative_event_is_the_response_object(
    with_logprobs: bool, extra: dict[str, int]
) -> None:
    answer = answer_of(with_logprobs)
    formatter = SGLangFormatter(answer)
    events = StreamEvents(formatter, only_new=False, extra=extra)
    for number, text in enumerate(STEPS):
        grow(answer, text, number)
        if number == len(STEPS) - 1:
            answer.finish("length", 2.0)
        whole = json.loads(json.dumps(formatter.result(1.25) | extra))
        assert read(events.next(1.25)) == whole
        assert events.num_tokens == len(answer.output_ids)


@pytest.mark.parametrize("with_logprobs", (False, True))
def test_events_with_only_what_is_new_are_disjoint_and_make_the_whole(with_logprobs: bool) -> None:
    answer = answer_of(with_logprobs)
    formatter = SGLangFormatter(answer)
    events = StreamEvents(formatter, only_new=True)
    text, ids, logprobs, last = "", [], [], {}
    for number, step in enumerate(STEPS):
        grow(answer, step, number)
        if number == len(STEPS) - 1:
            answer.finish("length", 2.0)
        last = read(events.next(1.25))
        assert len(last["output_ids"]) == len(step)
        text, ids = text + last["text"], ids + last["output_ids"]
        logprobs += last["meta_info"].get("output_token_logprobs", [])
        assert last["meta_info"]["completion_tokens"] == len(ids)
    whole = json.loads(json.dumps(formatter.result(1.25)))
    assert text == whole["text"] == "".join(STEPS) and ids == whole["output_ids"]
    assert logprobs == whole["meta_info"].get("output_token_logprobs", [])
    assert bool(logprobs) == with_logprobs
    assert last["meta_info"]["finish_reason"] == {"type": "length", "length": len(ids)}


def test_an_error_is_the_last_event() -> None:
    answer = answer_of(False)
    events = StreamEvents(SGLangFormatter(answer), only_new=False)
    grow(answer, "ab", 0)
    events.next(1.0)
    answer.abort("unavailable", "no node is left", 1, 2.0)
    assert read(events.next(2.0))["error"]["message"] == "no node is left"
