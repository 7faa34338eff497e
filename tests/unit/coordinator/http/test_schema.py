"""What /generate accepts, and the sentences it refuses with."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.http.errors import BadRequest
from coordinator.http.native.schema import LogprobParams, parse_generate


def test_one_text() -> None:
    parsed = parse_generate({"text": "hello"})
    assert not parsed.is_batch and not parsed.stream
    assert parsed.prompts[0].text == "hello"
    assert parsed.prompts[0].sampling.max_new_tokens == 128
    assert parsed.prompts[0].sampling.temperature == 1.0


def test_a_batch_with_one_or_many_sampling_params() -> None:
    shared = parse_generate({"text": ["a", "b"], "sampling_params": {"top_k": 3}})
    assert [p.sampling.top_k for p in shared.prompts] == [3, 3]
    each = parse_generate({"text": ["a", "b"], "sampling_params": [{"top_k": 3}, {"top_k": 4}]})
    assert [p.sampling.top_k for p in each.prompts] == [3, 4]


def test_input_ids() -> None:
    assert parse_generate({"input_ids": [1, 2]}).prompts[0].input_ids == [1, 2]
    batch = parse_generate({"input_ids": [[1], [2, 3]]})
    assert batch.is_batch
    assert [p.input_ids for p in batch.prompts] == [[1], [2, 3]]


def test_names_and_tenants() -> None:
    parsed = parse_generate({"text": ["a", "b"], "rid": "r", "cache_salt": "tenant"})
    assert [p.rid for p in parsed.prompts] == ["r_0", "r_1"]
    assert parsed.prompts[0].cache_salt == parsed.prompts[1].cache_salt != ""
    bodies = [
        {},
        {"cache_salt": "t"},
        {"extra_key": "t"},
        {"cache_salt": "t", "extra_key": "u"},
        {"cache_salt": "tu"},
        {"cache_salt": "t\0u"},
    ]
    salts = {parse_generate({"text": "a"} | body).prompts[0].cache_salt for body in bodies}
    assert len(salts) == len(bodies)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "give text or input_ids"),
        ({"text": None, "input_ids": None}, "give text or input_ids"),
        ({"text": "a", "input_ids": [[1]]}, "give ids beside one text"),
        ({"text": ["a"], "input_ids": [1]}, "give lists of ids beside a list of texts"),
        ({"text": ["a", "b"], "input_ids": [[1]]}, "input_ids has 1 entries for 2 prompts"),
        ({"text": "a", "rid": "x" * 257}, "at most 256 characters"),
        ({"text": "a", "rid": "x\ny"}, "one printable line"),
        ({"text": "a", "request_id": ["x", "y"]}, "request_id has 2 entries for 1 prompts"),
        ({"text": []}, "1 to 1024 prompts"),
        ({"text": ["a"] * 1025}, "1 to 1024 prompts"),
        ({"input_ids": ["1"]}, "input_ids"),
        ({"input_ids": [True]}, "input_ids"),
        ({"input_ids": [1, [2]]}, "either ids or lists"),
        ({"input_ids": [[1], ["2"]]}, "input_ids"),
        ({"sampling_params": [{"top_p": "1"}], "text": ["a"]}, "sampling_params: top_p"),
        ({"text": "a", "stream": "yes"}, "stream"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "1 entries for 2 prompts"),
        ({"text": ["a", "b"], "rid": ["x", "x"]}, "same request twice"),
        ({"text": "a", "return_logprob": "yes"}, "return_logprob"),
        ({"text": ["a", "b"], "return_logprob": [True]}, "return_logprob has 1 entries for 2"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": -2}, "logprob_start_len is -2"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": 129}, "must be 0 to 128"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": -1}, "must be 0 to 128"),
        ({"text": "a", "return_logprob": True, "token_ids_logprob": [1, [2]]}, "either ids or"),
        ({"text": "a", "return_logprob": True, "token_ids_logprob": [1] * 1025}, "at most 1024"),
        ({"text": "a", "lora_path": "x"}, "lora_path is not supported"),
    ],
)
def test_refused_bodies(body: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_generate(body)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"temperature": -0.1}, "temperature: expected float >= 0.0, got -0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 1 << 63}, "top_k"),
        ({"temperature": "0.7"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"min_p": "0"}, "min_p"),
        ({"stop": "x" * 1025}, "1024 characters"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"n": 0}, "n: expected int >= 1, got 0"),
        ({"n": 10**4000}, "n: expected int <= [0-9]+, got 10{39}$"),
        ({"temprature": 1}, "unknown key temprature"),
        ({"regex": "a+", "json_schema": "{}"}, "regex and json_schema are given"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 2.1}, "repetition_penalty"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"logit_bias": {"one": 2.0}}, "'one' is no token id"),
        ({"logit_bias": {"-1": 2.0}}, "'-1' is no token id"),
        ({"logit_bias": {"01": 2.0}}, "'01' is no token id"),
        ({"logit_bias": {"1": "2"}}, "logit_bias"),
        ({"logit_bias": {"1": 1e31}}, "1e.31 for id 1 is too much"),
        ({"logit_bias": {"1": float("nan")}}, "nan for id 1"),
        ({"logit_bias": {str(i): 1.0 for i in range(1025)}}, "at most 1024"),
        ({"stop": ["x"] * 33}, "at most 32"),
    ],
)
def test_refused_sampling(params: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_generate({"text": "a", "sampling_params": params})


def test_neutral_values_of_what_is_missing_are_welcome() -> None:
    parse_generate(
        {
            "text": "a",
            "return_logprob": False,
            "sampling_params": {"regex": None, "stop_regex": "", "custom_params": {}},
        }
    )


def test_penalties_and_biases_at_their_limits() -> None:
    params = {
        "frequency_penalty": -2,
        "presence_penalty": 2,
        "repetition_penalty": 2,
        "logit_bias": {"0": -1e30, "17": 3},
    }
    sampling = parse_generate({"text": "a", "sampling_params": params}).prompts[0].sampling
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (-2, 2)
    assert sampling.repetition_penalty == 2
    assert sampling.biases == [(0, -1e30), (17, 3.0)]


def test_logprobs_for_all_or_for_each() -> None:
    shared = {"text": ["a", "b"], "return_logprob": True, "top_logprobs_num": 2}
    wanted = LogprobParams(num_top=2, token_ids=(7, 8), with_text=True)
    body = shared | {"token_ids_logprob": [7, 8], "return_text_in_logprobs": True}
    assert [p.logprobs for p in parse_generate(body).prompts] == [wanted, wanted]
    each = {
        "text": ["a", "b", "c"],
        "return_logprob": [True, False, True],
        "top_logprobs_num": [0, 1, 3],
        "token_ids_logprob": [[5], [6], None],
        "logprob_start_len": [-1, 0, -1],
    }
    assert [p.logprobs for p in parse_generate(each).prompts] == [
        LogprobParams(token_ids=(5,)),
        None,
        LogprobParams(num_top=3),
    ]


def test_where_logprobs_of_the_prompt_begin() -> None:
    """A request for no answer asks for the logprobs of the whole prompt."""
    answers = [(8, None, -1), (8, -1, -1), (8, 0, 0), (8, 5, 5)]
    no_answers = [(0, None, 0), (0, -1, 0), (0, 5, 5)]
    for max_new_tokens, asked, start in [*answers, *no_answers]:
        params = {"max_new_tokens": max_new_tokens}
        body = {"text": "a", "return_logprob": True, "sampling_params": params}
        parsed = parse_generate(body | {"logprob_start_len": asked})
        assert parsed.prompts[0].logprobs == LogprobParams(start=start)


def test_what_goes_with_logprobs_is_ignored_without_them() -> None:
    body = {"text": "a", "top_logprobs_num": 5, "logprob_start_len": 0, "return_logprob": None}
    assert parse_generate(body).prompts[0].logprobs is None
