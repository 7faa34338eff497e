"""What /generate accepts, and the sentences it refuses with."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.schema import BadRequest, parse_generate


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
        ({}, "exactly one of text and input_ids"),
        ({"text": "a", "input_ids": [1]}, "exactly one of text and input_ids"),
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
        ({"text": "a", "return_logprob": True}, "return_logprob is not supported"),
        ({"text": "a", "lora_path": "x"}, "lora_path is not supported"),
    ],
)
def test_refused_bodies(body: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_generate(body)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"temperature": -0.1}, "temperature"),
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
        ({"n": 0}, "n"),
        ({"temprature": 1}, "unknown key temprature"),
        ({"regex": "a+"}, "regex is not supported"),
        ({"json_schema": "{}"}, "json_schema is not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        ({"logit_bias": {"1": 2.0}}, "logit_bias is not supported"),
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
            "sampling_params": {"regex": None, "frequency_penalty": 0.0, "min_new_tokens": 0},
        }
    )
