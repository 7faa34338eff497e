"""Chooses how a model writes calls and thoughts, as the operator says or its files tell. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.conversation.calls.deepseek import CALLS_BEGIN, FENCE, DeepSeek
from coordinator.conversation.calls.format import CallFormat
from coordinator.conversation.calls.hermes import Hermes
from coordinator.conversation.calls.llama import PYTHON_TAG, Llama
from coordinator.conversation.calls.mistral import ARGS, Mistral
from coordinator.conversation.calls.mistral import BEGIN as MISTRAL_BEGIN
from coordinator.conversation.calls.no_calls import NoCalls
from coordinator.conversation.calls.pythonic import BEGIN as PYTHON_START
from coordinator.conversation.calls.pythonic import Pythonic
from coordinator.conversation.calls.qwen_coder import FUNCTION, QwenCoder
from coordinator.conversation.family import FamilyForm
from coordinator.conversation.thoughts import FORCED_TAGS, KIMI, MISTRAL, TAGS, ThoughtFormat

CALLS: Mapping[str, CallFormat] = {
    "none": NoCalls(),
    "hermes": Hermes(),
    "qwen": Hermes(),
    "qwen25": Hermes(),
    "qwen3_coder": QwenCoder(),
    "llama3": Llama(),
    "pythonic": Pythonic(),
    "mistral": Mistral(),
    "deepseekv3": DeepSeek(),
    "deepseekv31": DeepSeek(has_fence=False),
}
THOUGHTS: Mapping[str, ThoughtFormat | None] = {
    "none": None,
    "qwen3": TAGS,
    "qwen3-thinking": FORCED_TAGS,
    "deepseek-r1": FORCED_TAGS,
    "deepseek-v3": TAGS,
    "glm45": TAGS,
    "kimi": KIMI,
    "kimi_k2": FORCED_TAGS,
    "step3": FORCED_TAGS,
    "mistral": MISTRAL,
}
CALL_PARSERS = ("auto", *CALLS)
REASONING_PARSERS = ("auto", *THOUGHTS)
OF_MODEL_TYPES: Mapping[str, CallFormat] = {
    "deepseek_v3": CALLS["deepseekv3"],
    "llama4": CALLS["pythonic"],
    "llama4_text": CALLS["pythonic"],
    "ministral": CALLS["mistral"],
    "mistral": CALLS["mistral"],
    "mistral3": CALLS["mistral"],
    "mixtral": CALLS["mistral"],
}
"""Of models whose files show no marks. Others get the format of Hermes, the one that most models
without a format of their own are trained on."""


def form_of(
    templates: Sequence[str],
    added_tokens: Mapping[str, bool],
    config: Mapping[str, Any],
    tool_call_parser: str = "auto",
    reasoning_parser: str = "auto",
) -> FamilyForm:
    """Returns the form of a model. `added_tokens` are the texts of its tokenizer's added tokens,
    with whether they are special; `config` is its config.json. The parsers are names of
    CALL_PARSERS and REASONING_PARSERS."""
    template = "\n".join(templates)
    if tool_call_parser == "auto":
        calls = _calls_of(template, added_tokens, str(config.get("model_type", "")))
    else:
        calls = CALLS[tool_call_parser]
    if isinstance(calls, Mistral):
        calls = Mistral(ARGS in added_tokens or ARGS in template)
    if reasoning_parser == "auto":
        thought = _thought_of(template, added_tokens)
    else:
        thought = THOUGHTS[reasoning_parser]
    marks = [*calls.marks, *((thought.begin, thought.end) if thought else ())]
    return FamilyForm(calls, thought, any(added_tokens.get(mark, False) for mark in marks))


def _calls_of(template: str, added_tokens: Mapping[str, bool], model_type: str) -> CallFormat:
    """A template shows the format in its rules for tools; else the tokens do."""
    if CALLS_BEGIN in template:
        return CALLS["deepseekv3" if f"{FENCE}json" in template else "deepseekv31"]
    if MISTRAL_BEGIN in template:
        return CALLS["mistral"]
    if FUNCTION in template:
        return CALLS["qwen3_coder"]
    if "<tool_call>" in template:
        return CALLS["hermes"]
    if PYTHON_START in template or "[func_name1(" in template:
        return CALLS["pythonic"]
    if PYTHON_TAG in template or '"parameters": dictionary of argument name' in template:
        return CALLS["llama3"]
    if model_type in OF_MODEL_TYPES:
        return OF_MODEL_TYPES[model_type]
    of_tokens = {
        "<tool_call>": "hermes",
        PYTHON_START: "pythonic",
        PYTHON_TAG: "llama3",
        MISTRAL_BEGIN: "mistral",
        CALLS_BEGIN: "deepseekv3",
    }
    return CALLS[next((of_tokens[mark] for mark in of_tokens if mark in added_tokens), "hermes")]


def _thought_of(template: str, added_tokens: Mapping[str, bool]) -> ThoughtFormat | None:
    for thought in (TAGS, MISTRAL, KIMI):
        if thought.end in template or thought.end in added_tokens:
            return thought
    return None
