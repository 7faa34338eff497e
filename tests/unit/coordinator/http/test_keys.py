"""Every key of /generate that SGLang knows: what is done with it, and what its null means."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from coordinator.http.errors import BadRequest
from coordinator.http.native.keys import (
    SAMPLING,
    TOP_LEVEL,
    Key,
    Treatment,
    is_neutral,
)
from coordinator.http.native.sampling_params import DEFAULT_SAMPLING, SamplingParams
from coordinator.http.native.schema import GenerateBody, parse_generate

NEUTRAL: tuple[Any, ...] = (None, False, "", [], {}, [None], [None, None], [[]], [[None]], [False])
ASKING: tuple[Any, ...] = ("x", True, 1, ["x"], [None, "x"], {"a": 1})


def treated(keys: tuple[Key, ...], *treatments: Treatment) -> list[Any]:
    return [pytest.param(key, id=key.name) for key in keys if key.treatment in treatments]


def body(**keys: Any) -> dict[str, Any]:
    return {"text": "a"} | keys


@pytest.mark.parametrize("keys", [TOP_LEVEL, SAMPLING], ids=["top", "sampling_params"])
def test_a_key_stands_in_the_table_once(keys: tuple[Key, ...]) -> None:
    names = [key.name for key in keys]
    assert len(set(names)) == len(names)
    assert {key.treatment for key in keys} <= set(get_args(Treatment))


def test_what_is_parsed_stands_in_the_table() -> None:
    for struct, keys in ((GenerateBody, TOP_LEVEL), (SamplingParams, SAMPLING)):
        parsed = {field.name for field in msgspec.structs.fields(struct)}
        known = {key.name for key in keys}
        supported = {key.name for key in keys if key.treatment == "supported"}
        assert supported <= parsed <= known


def test_a_deep_value_is_looked_through() -> None:
    nothing: list[object] = []
    something: list[object] = ["a"]
    for _ in range(5000):
        nothing, something = [nothing], [something]
    assert is_neutral(nothing) and not is_neutral(something)


@pytest.mark.parametrize("key", treated(TOP_LEVEL, "refused", "not yet"))
def test_what_is_not_supported_at_the_top_is_refused_by_name(key: Key) -> None:
    for value in NEUTRAL + key.neutral:
        parse_generate(body(**{key.name: value}))
    for value in ASKING:
        if not is_neutral(value) and value not in key.neutral:
            with pytest.raises(BadRequest, match=f"^{key.name} is not supported") as caught:
                parse_generate(body(**{key.name: value}))
            assert caught.value.param == key.name


@pytest.mark.parametrize("key", treated(SAMPLING, "refused", "not yet"))
def test_what_is_not_supported_in_sampling_params_is_refused_by_name(key: Key) -> None:
    for value in NEUTRAL + key.neutral:
        parse_generate(body(sampling_params={key.name: value}))
    with pytest.raises(BadRequest, match=f"sampling_params: {key.name} is not") as caught:
        parse_generate(body(sampling_params={key.name: "x"}))
    assert caught.value.param == f"sampling_params.{key.name}"


@pytest.mark.parametrize("key", treated(TOP_LEVEL, "ignored"))
def test_what_does_not_change_the_answer_is_ignored_whatever_its_value(key: Key) -> None:
    plain = parse_generate(body())
    for value in NEUTRAL + ASKING:
        assert parse_generate(body(**{key.name: value})) == plain


def test_zero_asks_for_something_unless_the_table_says_otherwise() -> None:
    parse_generate(body(priority=0))
    for key in ("max_thinking_tokens", "bootstrap_room"):
        with pytest.raises(BadRequest, match=f"{key} is not supported"):
            parse_generate(body(**{key: 0}))


@pytest.mark.parametrize("name", [f.name for f in msgspec.structs.fields(GenerateBody)])
def test_null_at_the_top_is_as_if_the_key_were_not_there(name: str) -> None:
    without = {"input_ids": [1]} if name == "text" else {"text": "a"}
    assert parse_generate(without | {name: None}) == parse_generate(without)


@pytest.mark.parametrize("name", [f.name for f in msgspec.structs.fields(SamplingParams)])
def test_null_in_sampling_params_is_the_default(name: str) -> None:
    (prompt,) = parse_generate(body(sampling_params={name: None})).prompts
    if name == "max_new_tokens":
        assert prompt.sampling.max_new_tokens is None, "up to the context"
    else:
        assert prompt.sampling == DEFAULT_SAMPLING


def test_an_unknown_key_in_sampling_params_is_named_even_if_it_is_null() -> None:
    for value in (None, 1):
        with pytest.raises(BadRequest, match="unknown key temprature") as caught:
            parse_generate(body(sampling_params={"top_k": None, "temprature": value}))
        assert caught.value.param == "sampling_params.temprature"


def test_an_unknown_key_at_the_top_is_ignored() -> None:
    assert parse_generate(body(nobody="knows this")) == parse_generate(body())


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"stream": "yes"}, "stream"),
        ({"input_ids": [1.5], "text": None}, "input_ids"),
        ({"sampling_params": {"top_p": "1"}}, "sampling_params.top_p"),
        ({"sampling_params": {"logit_bias": {"1": "2"}}}, "sampling_params.logit_bias"),
        ({"sampling_params": {"stop": [1]}}, "sampling_params.stop"),
        ({"sampling_params": {"temperature": 1e39}}, "sampling_params.temperature"),
        ({"sampling_params": {"sampling_seed": 1 << 63}}, "sampling_params.sampling_seed"),
        ({"sampling_params": {"n": 65}}, "sampling_params.n"),
        ({"sampling_params": {"stop_regex": "(a"}}, "sampling_params.stop_regex"),
        ({"sampling_params": {"stop_regex": r"(?=a)"}}, "sampling_params.stop_regex"),
        ({"text": ["a"] * 1025}, "text"),
    ],
)
def test_an_error_names_the_key_in_its_sentence_and_in_param(
    given: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_generate(body() | given)
    assert caught.value.param == param
    if param != "text":
        assert param.rpartition(".")[2] in str(caught.value)


def test_any_int64_is_a_seed() -> None:
    for seed in (-(1 << 63), -1, 0, (1 << 63) - 1):
        (prompt,) = parse_generate(body(sampling_params={"sampling_seed": seed})).prompts
        assert prompt.sampling.sampling_seed == seed


def test_null_for_one_prompt_of_a_batch_is_the_default() -> None:
    given = {
        "text": ["a", "b"],
        "sampling_params": [None, {"top_k": 3}],
        "return_logprob": [None, True],
        "cache_salt": [None, "t"],
        "lora_path": [None, None],
    }
    first, second = parse_generate(given).prompts
    assert (first.sampling, first.logprobs, first.cache_salt) == (DEFAULT_SAMPLING, None, "")
    assert second.sampling.top_k == 3 and second.logprobs and second.cache_salt


def test_with_text_and_ids_the_text_decides_the_batch_and_the_ids_are_read() -> None:
    one = parse_generate({"text": "a", "input_ids": [1, 2]})
    assert not one.is_batch and one.prompts[0].input_ids == [1, 2] and one.prompts[0].text is None
    two = parse_generate({"text": ["a", "b"], "input_ids": [[1], [2]]})
    assert two.is_batch and [p.input_ids for p in two.prompts] == [[1], [2]]
