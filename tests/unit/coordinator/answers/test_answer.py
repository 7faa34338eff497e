"""What an answer is while it grows and when it has ended, and how SGLang's dialect shows it."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.answers.answer import Answer, AnswerError, FinishReason, NewTokens
from coordinator.answers.request import Request
from coordinator.http.errors import STATUS_CODES
from coordinator.http.native.sglang import SGLangFormatter, stream_error
from protocol.sampling import Sampling, TokenLogprobs
from tests.support.coordinator.nodes import Nodes, demand_of
from tests.support.models.tokenizers import character_pieces

END = ord("$")
PIECES = character_pieces()
WANTED = Sampling(num_top_logprobs=2, logprob_token_ids=(ord("x"), ord("y")))
ROUTE = Nodes("p0", "d0").placement.route(demand_of(100), 0.0)


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def answer_of(*stops: str, sampling: Sampling = WANTED, keeps_stop: bool = False) -> Answer:
    request = Request(
        [1], sampling, 9, [END], stop_strings=stops, keeps_stop=keeps_stop, pieces=PIECES
    )
    return Answer(request, "r", 0.0)


def logprobs_of(token: int) -> TokenLogprobs:
    """Of a token whose second likeliest is the one behind it; the wanted ones are x and y."""
    return TokenLogprobs(-token / 8, [(token, -token / 8), (token + 1, -99.0)], [-1.0, -2.0])


def grow(answer: Answer, text: str, now: float = 1.0, cached_tokens: int = 0) -> bool:
    tokens = [ord(c) for c in text]
    new = NewTokens(tokens, [logprobs_of(token) for token in tokens], cached_tokens, 0, 0)
    return answer.grow(new, ROUTE, 1, now)


def test_a_stop_string_ends_it_before_the_string() -> None:
    answer = answer_of("END")
    assert not grow(answer, "so E") and answer.text == "so ", "it may become a stop string"
    assert grow(answer, "ND here")
    assert answer.text == "so " and answer.output_ids == [ord(c) for c in "so END"]
    assert answer.finish_reason == FinishReason("stop", "END") and answer.ended_at == 1.0
    kept = answer_of("END", keeps_stop=True)
    assert grow(kept, "so END here") and kept.text == "so END"


def test_an_end_token_is_among_the_ids_and_in_the_text_only_if_it_is_kept() -> None:
    for keeps_stop, text in ((False, "ab"), (True, "ab$")):
        answer = answer_of(keeps_stop=keeps_stop)
        assert not grow(answer, "ab$")
        answer.finish("stop", 2.0)
        assert answer.finish_reason == FinishReason("stop", END)
        assert answer.text == text and answer.output_ids[-1] == END


def test_what_might_have_become_a_stop_string_is_shown_in_the_end() -> None:
    answer = answer_of("END")
    grow(answer, "so EN")
    answer.finish("length", 2.0)
    assert answer.text == "so EN" and answer.finish_reason == FinishReason("length")
    result = SGLangFormatter(answer).result(9.0)["meta_info"]
    assert result["finish_reason"] == {"type": "length", "length": 5}
    assert result["e2e_latency"] == 2.0 and result["ttft"] == 1.0


def test_what_was_cached_is_what_the_first_attempt_found() -> None:
    answer = answer_of()
    grow(answer, "a", cached_tokens=16)
    grow(answer, "b", cached_tokens=64)
    answer.finish("length", 2.0)
    counters = answer.counters()
    assert (counters.cached_tokens, counters.requests_hit, counters.completion_tokens) == (16, 1, 2)
    assert counters.failed_requests == counters.retries == 0


def test_an_aborted_answer_says_why_in_every_dialect() -> None:
    answer = answer_of()
    grow(answer, "a")
    answer.abort("unavailable", "no node is left", 3, 2.0)
    assert answer.is_done and answer.error == AnswerError("unavailable", "no node is left")
    assert answer.counters().failed_requests == 1 and answer.counters().retries == 2
    assert stream_error(answer.error)["error"] == {
        "message": "no node is left",
        "type": "ServiceUnavailable",
        "code": 503,
        "param": None,
        "retryable": True,
    }
    assert STATUS_CODES["timed_out"] == 504


def test_every_request_is_counted_by_how_it_ended() -> None:
    succeeded, failed, left, aborted = (answer_of() for _ in range(4))
    grow(succeeded, "a")
    succeeded.finish("length", 2.0)
    failed.abort("timed_out", "too long", 1, 2.0)
    left.abort("client_left", "the client has left", 1, 2.0)
    aborted.abort_as_asked(2.0)
    ends = ("failed_requests", "disconnected_requests", "aborted_requests")
    counted = [
        [getattr(answer.counters(), name) for name in ends]
        for answer in (succeeded, failed, left, aborted)
    ]
    assert counted == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_logprobs_are_cumulative_and_in_the_lists_of_sglang() -> None:
    answer = answer_of()
    formatter = SGLangFormatter(answer, decode)
    grow(answer, "a")
    assert len(formatter.result(1.0)["meta_info"]["output_token_logprobs"]) == 1
    grow(answer, "bc")
    meta = formatter.result(1.0)["meta_info"]
    a, b, c = map(ord, "abc")
    assert meta["output_token_logprobs"] == [(-a / 8, a, "a"), (-b / 8, b, "b"), (-c / 8, c, "c")]
    assert meta["output_top_logprobs"][2] == [(-c / 8, c, "c"), (-99.0, c + 1, "d")]
    assert meta["output_token_ids_logprobs"] == [[(-1.0, 120, "x"), (-2.0, 121, "y")]] * 3
    inputs = [meta[f"input_{name}_logprobs"] for name in ("token", "top", "token_ids")]
    assert inputs == [[], [], []]


def test_logprobs_have_no_texts_and_no_lists_that_nobody_asked_for() -> None:
    answer = answer_of(sampling=Sampling(num_top_logprobs=0))
    answer.grow(NewTokens([97], [TokenLogprobs(-0.5)], 0, 0, 0), ROUTE, 1, 1.0)
    meta = SGLangFormatter(answer).result(1.0)["meta_info"]
    assert meta["output_token_logprobs"] == [(-0.5, 97, None)]
    assert not {"output_top_logprobs", "output_token_ids_logprobs"} & meta.keys()
    silent = answer_of(sampling=Sampling())
    silent.grow(NewTokens([97], [], 0, 0, 0), ROUTE, 1, 1.0)
    assert "output_token_logprobs" not in SGLangFormatter(silent).result(1.0)["meta_info"]


def test_logprobs_end_with_the_token_that_completes_a_stop_string() -> None:
    answer = answer_of("END")
    assert grow(answer, "so END and more")
    result = SGLangFormatter(answer, decode).result(1.0)
    ids = [entry[1] for entry in result["meta_info"]["output_token_logprobs"]]
    assert ids == result["output_ids"] == list(map(ord, "so END"))


def test_the_route_is_shown_once_a_token_came_from_there() -> None:
    answer = answer_of()
    assert SGLangFormatter(answer).result(0.5)["meta_info"]["decode_node"] is None
    grow(answer, "a")
    meta = SGLangFormatter(answer).result(1.0)["meta_info"]
    assert (meta["prefill_node"], meta["decode_node"]) == ("p0", "d0")
    assert meta["route_reason"] == ROUTE.reason and meta["fetched_from"] is None
