"""The part of docs/compatibility.md about chats and completions, as this version treats each key.

As for the native API, nothing is claimed: each key is given to the parser with a value that asks
for something, and what comes of it is what the tables say.
"""

from __future__ import annotations

from typing import Any

from coordinator.http.documents.tables import table
from coordinator.http.errors import BadRequest
from coordinator.http.native.keys import Key
from coordinator.http.openai.chats.body import parse_chat
from coordinator.http.openai.completions.body import parse_completions
from coordinator.http.openai.keys import CHAT_KEYS, COMPLETION_KEYS

TOOL = {"type": "function", "function": {"name": "weather"}}
TAG = {"type": "structural_tag", "format": {"type": "any_text"}}
EXAMPLES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}],
    "prompt": ["a", "b"],
    "model": "tiny",
    "stream": True,
    "stream_options": {"include_usage": True},
    "rid": "mine",
    "request_id": "mine",
    "cache_salt": "tenant",
    "extra_key": "tenant",
    "priority": 1,
    "return_token_ids": True,
    "max_completion_tokens": 8,
    "max_tokens": 8,
    "temperature": 0,
    "top_p": 0.9,
    "top_k": 0,
    "min_p": 0.1,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.1,
    "n": 2,
    "best_of": 1,
    "seed": -1,
    "stop": ["\n"],
    "stop_token_ids": [2],
    "stop_regex": "[.!?]\\s",
    "min_tokens": 1,
    "ignore_eos": True,
    "logit_bias": {"7": -1.5},
    "skip_special_tokens": False,
    "no_stop_trim": True,
    "include_stop_str_in_output": True,
    "logprobs": True,
    "top_logprobs": 5,
    "echo": True,
    "response_format": {"type": "json_object"},
    "regex": "[a-z]+",
    "ebnf": 'root ::= "yes" | "no"',
    "json_schema": {"type": "object"},
    "structural_tag": TAG,
    "structured_outputs": {"regex": "[a-z]+"},
    "guided_json": {"type": "object"},
    "guided_regex": "[a-z]+",
    "guided_choice": ["yes", "no"],
    "guided_grammar": 'root ::= "yes" | "no"',
    "tools": [TOOL],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
    "separate_reasoning": False,
    "stream_reasoning": False,
    "include_reasoning": False,
    "chat_template_kwargs": {"enable_thinking": False},
    "add_generation_prompt": True,
    "continue_final_message": True,
    "add_special_tokens": True,
    "documents": [{"title": "a", "text": "b"}],
    "length_penalty": 2.0,
    "modalities": ["text", "audio"],
    "verbosity": "high",
}
"""A value of each key that asks for something; "x" for all others."""
BESIDE: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True},
    "tool_choice": {"tools": [TOOL]},
    "stream_options": {"stream": True},
}
"""What a key needs beside it."""
DIFFERENCES = (
    (
        "model",
        'The served name, the path of the model, "default", or nothing; any other name is a 404 '
        "with the code model_not_found. (SGLang answers to any name.)",
    ),
    (
        "errors",
        'OpenAI\'s shape, `{"error": {"message", "type", "param", "code"}}`, on every path of /v1; '
        "codes are texts. Within a stream it is an event, then `[DONE]`.",
    ),
    (
        "usage",
        "prompt_tokens_details.cached_tokens and completion_tokens_details.reasoning_tokens are "
        "always there. Thoughts are counted as the tokenizer writes their text.",
    ),
    (
        "id",
        "The client's rid, if it gave one; /abort_request takes it as the rid.",
    ),
    (
        "sampling",
        "What a body leaves out is as the model's generation_config.json recommends, as in SGLang "
        "and vLLM. Without a seed each answer gets one of its own.",
    ),
    (
        "messages",
        "Parts of text are joined with a line break unless the template reads parts. `developer` "
        "is `system` for templates that do not know it. Arguments of calls that are no JSON stay "
        "the text that they are.",
    ),
    (
        "finish_reason",
        "tool_calls whenever a message ends with calls, with a named tool_choice too; abort after "
        "/abort_request. matched_stop and stop_reason say what stopped it.",
    ),
    (
        "tools",
        "Calls are read in the form of the model's family, which its files tell: Hermes (Qwen), "
        "Llama 3, Llama 4 (pythonic), Mistral, DeepSeek; --tool-call-parser names another. Text "
        "that is no whole call stays text. Each call has an index and an id of its own; in a "
        "stream the first delta of a call has its name, later ones pieces of its arguments. With "
        "tool_choice auto, `strict` binds the arguments of calls.",
    ),
    (
        "reasoning_content",
        "Thoughts come before text and calls and apart from them, for families that mark them; "
        "--reasoning-parser names the marks. `enable_thinking` or `thinking` false in "
        "chat_template_kwargs, reasoning_effort none and separate_reasoning false leave the text "
        "as it is. A grammar binds what follows a thought.",
    ),
    (
        "tool_choice",
        "none leaves the tools out of the prompt, as in SGLang. Where a call is forced, "
        "response_format does not apply, as there is no text that could follow it.",
    ),
    (
        "n",
        "Choices of a stream come side by side, each event with its index. best_of is as n.",
    ),
    (
        "logprobs",
        "Up to 20 likely tokens in completions too (OpenAI: 5). With echo they cover the prompt; "
        "max_tokens 0 with echo scores a prompt and makes no answer.",
    ),
)


def observed_in_chats(key: Key) -> str:
    """Returns "accepted", or "400: …" with the error, for a small chat with an example value of
    the key."""
    value = EXAMPLES.get(key.name, "x")
    body = {"messages": EXAMPLES["messages"]} | BESIDE.get(key.name, {}) | {key.name: value}
    try:
        parse_chat(body, {})
    except BadRequest as error:
        return f"400: {error}"
    return "accepted"


def observed_in_completions(key: Key) -> str:
    """Returns the same for a small completion."""
    value = 5 if key.name == "logprobs" else EXAMPLES.get(key.name, "x")
    try:
        parse_completions({"prompt": "a"} | {key.name: value}, {})
    except BadRequest as error:
        return f"400: {error}"
    return "accepted"


def openai_sections() -> list[str]:
    """Returns the lines of this part."""
    head = ("key", "treatment", "note", "seen")
    return [
        "# Compatibility with OpenAI's API",
        "",
        "Keys are those of OpenAI, and what SGLang and vLLM add to them. Values that ask for "
        "nothing are accepted everywhere, null stands for the default, and any other key is "
        "ignored, as clients send what their newest version has.",
        "",
        "## POST /v1/chat/completions",
        "",
        *table(head, [_row(key, observed_in_chats(key)) for key in CHAT_KEYS]),
        "",
        "## POST /v1/completions",
        "",
        *table(head, [_row(key, observed_in_completions(key)) for key in COMPLETION_KEYS]),
        "",
        "## What to know",
        "",
        *table(("what", "how it is"), DIFFERENCES),
        "",
    ]


def _row(key: Key, seen: str) -> list[str]:
    return [f"`{key.name}`", key.treatment, key.note, seen]
