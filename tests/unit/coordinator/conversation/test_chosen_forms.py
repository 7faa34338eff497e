"""The form of a model, by its template, its tokens, its type, or its operator's choice."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.answers.template_sources import built_in_templates
from coordinator.config import CoordinatorConfig
from coordinator.conversation.calls.format import CallFormat
from coordinator.conversation.calls.no_calls import NoCalls
from coordinator.conversation.choice import CALLS, form_of
from coordinator.conversation.thoughts import FORCED_TAGS, MISTRAL, TAGS, ThoughtFormat
from infra.models import EMBEDDED
from protocol.config import ConfigError, resolve

QWEN = (
    "return a json object within <tool_call></tool_call> XML tags\n{%- if enable_thinking is "
    "defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
)
LLAMA_3 = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}. {{- '<|python_tag|>' }}"
)
LLAMA_4 = (
    "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]"
)
CHOSEN: list[tuple[str, dict[str, bool], dict[str, Any], CallFormat, ThoughtFormat | None]] = [
    (QWEN, {}, {"model_type": "qwen3"}, CALLS["hermes"], TAGS),
    (
        "<tool_call>\n<function=example>",
        {},
        {"model_type": "qwen3_moe"},
        CALLS["qwen3_coder"],
        None,
    ),
    (LLAMA_3, {}, {"model_type": "llama"}, CALLS["llama3"], None),
    (LLAMA_4, {}, {"model_type": "llama"}, CALLS["pythonic"], None),
    ("{{- '[TOOL_CALLS] [' }}", {}, {}, CALLS["mistral"], None),
    ("<｜tool▁calls▁begin｜>\\n```json\\n", {}, {}, CALLS["deepseekv3"], None),
    ("<｜tool▁calls▁begin｜></think>", {}, {}, CALLS["deepseekv31"], TAGS),
    ("", {"<|python_tag|>": True}, {"model_type": "llama"}, CALLS["llama3"], None),
    ("", {"[THINK]": True, "[/THINK]": True}, {}, CALLS["hermes"], MISTRAL),
    ("", {}, {"model_type": "mistral"}, CALLS["mistral"], None),
    ("", {}, {}, CALLS["hermes"], None),
]


@pytest.mark.parametrize(("template", "added_tokens", "config", "calls", "thought"), CHOSEN)
def test_the_files_of_a_model_tell_its_form(
    template: str,
    added_tokens: dict[str, bool],
    config: dict[str, Any],
    calls: CallFormat,
    thought: ThoughtFormat | None,
) -> None:
    form = form_of([template], added_tokens, config)
    assert (form.calls, form.thought) == (calls, thought)


def test_mistral_writes_the_newer_format_if_it_has_its_mark() -> None:
    newer = form_of([], {"[TOOL_CALLS]": True, "[ARGS]": True}, {})
    assert newer.calls != CALLS["mistral"] and isinstance(newer.calls, type(CALLS["mistral"]))


def test_marks_that_are_special_tokens_have_to_be_shown() -> None:
    assert form_of([], {"<|python_tag|>": True}, {}).needs_special_tokens
    assert not form_of([QWEN], {"<tool_call>": False, "<think>": False}, {}).needs_special_tokens
    assert not form_of([], {"<|python_tag|>": True}, {}, "none").needs_special_tokens


def test_the_operator_chooses_before_the_files() -> None:
    form = form_of([QWEN], {}, {}, "llama3", "deepseek-r1")
    assert (form.calls, form.thought) == (CALLS["llama3"], FORCED_TAGS)
    form = form_of([QWEN], {}, {}, "none", "none")
    assert isinstance(form.calls, NoCalls) and form.thought is None and not form.reads_calls


def test_every_built_in_template_has_a_form() -> None:
    forms = {name: form_of([text], {}, {}) for name, text in built_in_templates().items()}
    assert forms and all(form.reads_calls for form in forms.values())
    assert forms["qwen"].calls == CALLS["hermes"]


@pytest.mark.parametrize("flag", ["tool_call_parser", "reasoning_parser"])
def test_an_unknown_parser_stops_the_start_and_others_are_named(flag: str) -> None:
    with pytest.raises(ConfigError, match=r"klingon.*none"):
        resolve(CoordinatorConfig, {"model_path": str(EMBEDDED), flag: "klingon"}, {})
