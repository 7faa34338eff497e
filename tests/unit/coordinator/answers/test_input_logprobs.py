"""Logprobs of a prompt at the coordinator: they arrive once, and are shown as SGLang shows them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from coordinator.answers.answer import Answer, NewTokens
from coordinator.answers.request import Request
from coordinator.core.demands import DemandMaker
from coordinator.core.instructions import AnswerChanged, Instruction, Send
from coordinator.core.statistics import Statistics
from coordinator.core.tracked_request import TrackedRequest
from coordinator.core.tracker import Tracker
from coordinator.http.native import input_logprobs
from coordinator.http.native.sglang import SGLangFormatter
from protocol import messages
from protocol.admission import reusable_tokens
from protocol.ids import Attempt, Node
from protocol.messages import Generate, TokenOut, TokensOut
from protocol.prompt_logprobs import PromptLogprobs, joined
from protocol.sampling import Sampling, TokenLogprobs
from tests.support.coordinator.nodes import Nodes, demand_of, load_of

ROUTE = Nodes("p0", "d0").placement.route(demand_of(100), 0.0)
P0 = Node("p0", 1)
PROMPT = [ord(c) for c in "prompt"]


def told(start: int, stop: int, num_top: int = 0, num_wanted: int = 0) -> PromptLogprobs:
    """The token at position p has the logprob -p / 8, the i-th likeliest -i, wanted ones -99."""
    rows = [
        [-p / 8, *(-float(i) for i in range(num_top)), *[-99.0] * num_wanted]
        for p in range(start, stop)
    ]
    ids = [100 + i for _ in rows for i in range(num_top)]
    return PromptLogprobs(
        start,
        stop - start,
        num_top,
        num_wanted,
        array("f", [value for row in rows for value in row]).tobytes(),
        array("i", ids).tobytes(),
    )


def meta_of(
    start: int, num_top: int = 0, wanted: Sequence[int] = (), with_text: bool = False
) -> dict[str, Any]:
    sampling = Sampling(
        prompt_length=len(PROMPT),
        num_top_logprobs=num_top,
        logprob_token_ids=tuple(wanted),
        prompt_logprobs_from=start,
    )
    answer = Answer(Request(PROMPT, sampling, 0), "r", 0.0)
    logprobs = told(max(1, start), len(PROMPT), num_top, len(wanted))
    answer.grow(NewTokens([], [], 0, 0, 0, logprobs), ROUTE, 1, 1.0)
    answer.finish("length", 1.0)
    formatter = SGLangFormatter(answer, (lambda ids: chr(ids[0])) if with_text else None)
    result = json.loads(msgspec.json.encode(formatter.result(1.0)))
    assert result == json.loads(msgspec.json.encode(formatter.result(1.0))), "it never changes"
    assert (result["text"], result["output_ids"]) == ("", [])
    assert result["meta_info"]["finish_reason"] == {"type": "length", "length": 0}
    return dict(result["meta_info"])


@pytest.mark.parametrize("start", [0, 1, 4, 5])
@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_entries_cover_the_prompt_from_the_start_and_only_the_first_position_has_none(
    start: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_logprobs, "PIECE_NUMBERS", piece)
    meta = meta_of(start, num_top=2, wanted=[7, 9])
    positions = range(start, len(PROMPT))
    assert meta["input_token_logprobs"] == [
        [-p / 8 if p else None, PROMPT[p], None] for p in positions
    ]
    top, wanted = [[0.0, 100, None], [-1.0, 101, None]], [[-99.0, 7, None], [-99.0, 9, None]]
    assert meta["input_top_logprobs"] == [top if p else None for p in positions]
    assert meta["input_token_ids_logprobs"] == [wanted if p else None for p in positions]


def test_entries_have_texts_if_they_are_asked_for() -> None:
    meta = meta_of(0, num_top=1, wanted=[120], with_text=True)
    assert [entry[2] for entry in meta["input_token_logprobs"]] == list("prompt")
    assert meta["input_top_logprobs"][1] == [[0.0, 100, "d"]]
    assert meta["input_token_ids_logprobs"][1] == [[-99.0, 120, "x"]]


def test_lists_that_nobody_asked_for_are_absent() -> None:
    meta = meta_of(2)
    assert len(meta["input_token_logprobs"]) == 4
    assert not {"input_top_logprobs", "input_token_ids_logprobs"} & meta.keys()


def test_a_prompt_of_one_token_has_an_entry_although_no_node_tells_any() -> None:
    sampling = Sampling(prompt_length=1, num_top_logprobs=0, prompt_logprobs_from=0)
    answer = Answer(Request([65], sampling, 4), "r", 0.0)
    out = TokenOut(Attempt("r", 0), 0, [7], logprobs=[TokenLogprobs(-0.5)])
    assert TrackedRequest(answer).problem_with(out) == ""
    answer.grow(NewTokens([7], [TokenLogprobs(-0.5)], 0, 0, 0), ROUTE, 1, 1.0)
    meta = SGLangFormatter(answer).result(1.0)["meta_info"]
    assert json.loads(msgspec.json.encode(meta["input_token_logprobs"])) == [[None, 65, None]]


def asking(start: int) -> Sampling:
    return Sampling(seed=5, prompt_length=3, num_top_logprobs=0, prompt_logprobs_from=start)


def started(sampling: Sampling) -> tuple[Tracker, Nodes, Generate]:
    """With a request that was sent to d0."""
    nodes = Nodes("d0", "d1")
    nodes.join("d1", load_of(num_running=7, queued_tokens=10))
    statistics = Statistics(nodes.registry)
    demands = DemandMaker(nodes.registry)
    tracker = Tracker(nodes.placement, nodes.queue, demands, statistics, "tcp://me:1")
    answer = Answer(Request([1, 2, 3], sampling, 8), "r", 0.0)
    return tracker, nodes, sent(tracker.submit(answer, 0.0))


def sent(instructions: Sequence[Instruction]) -> Generate:
    messages = [i.message for i in instructions if isinstance(i, Send)]
    (generate,) = [m for m in messages if isinstance(m, Generate)]
    return generate


def lose(tracker: Tracker, nodes: Nodes, name: str, now: float) -> list[Instruction]:
    return tracker.node_lost(nodes.leave(name), now)


def out_of(generate: Generate, *tokens: int, logprobs: PromptLogprobs | None) -> TokensOut:
    ours = [TokenLogprobs(-0.5)] * len(tokens)
    out = TokenOut(generate.attempt, 0, list(tokens), logprobs=ours, prompt_logprobs=logprobs)
    return TokensOut([out], Node("d0", 1))


def test_a_retry_asks_again_only_if_they_did_not_come() -> None:
    tracker, nodes, generate = started(asking(1))
    assert generate.sampling.prompt_logprobs_from == 1
    again = sent(lose(tracker, nodes, "d0", 0.5))
    assert again.sampling.prompt_logprobs_from == 1


def test_what_came_is_kept_and_not_asked_for_again() -> None:
    tracker, nodes, generate = started(asking(1))
    (changed,) = tracker.tokens(out_of(generate, 7, logprobs=told(1, 3)), 0.1)
    assert isinstance(changed, AnswerChanged)
    assert changed.answer.prompt_logprobs == told(1, 3)
    again = sent(lose(tracker, nodes, "d0", 0.5))
    assert again.sampling == msgspec.structs.replace(asking(1), prompt_logprobs_from=-1)


@pytest.mark.parametrize("logprobs", [None, told(1, 2), told(2, 3)])
def test_tokens_without_all_of_them_are_a_failed_attempt(logprobs: PromptLogprobs | None) -> None:
    tracker, _, generate = started(asking(0))
    outcomes = tracker.tokens(out_of(generate, 7, logprobs=logprobs), 0.1)
    assert sent(outcomes).sampling.prompt_logprobs_from == 0


def test_a_message_brings_them_as_they_were() -> None:
    logprobs = told(1, 40, num_top=3, num_wanted=2)
    message = TokensOut([TokenOut(Attempt("r", 1), 0, [], "length", prompt_logprobs=logprobs)], P0)
    assert messages.decode(messages.encode(message)) == message
    parts = [told(1, 20, 3, 2), told(20, 21, 3, 2), told(21, 40, 3, 2)]
    assert joined(parts) == logprobs


def test_the_token_before_the_start_is_always_computed() -> None:
    assert [reusable_tokens(10, start) for start in (None, 1, 2, 9, 10)] == [9, 0, 1, 8, 9]


def test_the_router_counts_on_no_page_that_has_to_be_computed_again() -> None:
    """A prompt of 100 tokens that is cached on both nodes, and wanted from position 40 on."""
    nodes = Nodes("p0", "d0")
    demand = demand_of(100, "a")
    for name in ("p0", "d0"):
        nodes.placement.owns(Node(name, 1), demand.hashes, 0.0)
    plain = nodes.placement.route(demand, 0.0)
    demand.logprobs_from = 40
    capped = nodes.placement.route(demand, 0.0)
    assert plain.cached_pages == 6 and capped.cached_pages == 2
    assert capped.prefill is None or capped.decode_pages == 6, "what is there need not be sent"
