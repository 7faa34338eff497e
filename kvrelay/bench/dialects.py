"""How a turn is asked for, and what the events of an answer say, in the APIs of servers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from kvrelay.bench.results.record import AnswerPart
from kvrelay.bench.workloads.dialogue import Passage, PastTurn, UserTurn, token_ids, words

Json = dict[str, Any]


class Dialect(Protocol):
    """One API."""

    path: str

    def body(self, past: Sequence[PastTurn], turn: UserTurn) -> Json:
        """Returns the body that asks for a streamed answer to `turn` after `past` ones."""
        ...

    def read(self, event: bytes) -> AnswerPart:
        """Reads the data of one event. Raises msgspec.MsgspecError if it is none of this API."""
        ...


@dataclass(frozen=True)
class Asking:
    """What is the same in all requests of a run."""

    model: str
    vocabulary: range
    """Where made-up token ids are taken from."""
    ignore_eos: bool


class NativeDialect:
    """SGLang's POST /generate. A prompt that is made up is sent as token ids, and so are the
    answers before it."""

    path = "/generate"

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def body(self, past: Sequence[PastTurn], turn: UserTurn) -> Json:
        key = "text" if isinstance(turn.content, str) else "input_ids"
        return {
            key: _prompt(past, turn, self._asking.vocabulary),
            "sampling_params": {
                "temperature": 0.0,
                "max_new_tokens": turn.num_output_tokens,
                "ignore_eos": self._asking.ignore_eos,
            },
            "stream": True,
        }

    def read(self, event: bytes) -> AnswerPart:
        read = _NATIVE.decode(event)
        if read.error is not None:
            return _failed(read.error)
        meta = read.meta_info
        is_last = meta.finish_reason is not None
        is_aborted = meta.finish_reason is not None and meta.finish_reason.type == "abort"
        return AnswerPart(
            has_content=meta.completion_tokens > 0,
            num_tokens=meta.completion_tokens,
            all_text=msgspec.json.decode(read.text, type=str) if is_last else None,
            output_ids=_all_ids(read) if is_last else (),
            num_prompt_tokens=meta.prompt_tokens,
            num_cached_tokens=meta.cached_tokens,
            num_attempts=meta.attempts,
            failure="aborted" if is_aborted else "",
        )


class CompletionsDialect:
    """OpenAI's POST /v1/completions. A prompt that is made up is sent as token ids; the answers
    before it, of which the API tells no ids, are made up as well."""

    path = "/v1/completions"

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def body(self, past: Sequence[PastTurn], turn: UserTurn) -> Json:
        prompt = _prompt(past, turn, self._asking.vocabulary)
        common = _common(self._asking, turn)
        return {"prompt": prompt, "max_tokens": turn.num_output_tokens} | common

    def read(self, event: bytes) -> AnswerPart:
        read = _OPENAI.decode(event)
        return _openai_part(read, "".join(choice.text for choice in read.choices))


class ChatDialect:
    """OpenAI's POST /v1/chat/completions. Prompts are texts: only the server knows how many tokens
    they have."""

    path = "/v1/chat/completions"

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def body(self, past: Sequence[PastTurn], turn: UserTurn) -> Json:
        messages = []
        for earlier in past:
            messages.append({"role": "user", "content": _text_of(earlier.turn)})
            messages.append({"role": "assistant", "content": earlier.text})
        messages.append({"role": "user", "content": _text_of(turn)})
        common = _common(self._asking, turn)
        return {"messages": messages, "max_tokens": turn.num_output_tokens} | common

    def read(self, event: bytes) -> AnswerPart:
        read = _OPENAI.decode(event)
        deltas = [choice.delta for choice in read.choices if choice.delta is not None]
        text = "".join(delta.content or "" for delta in deltas)
        has_more = any(delta.reasoning_content or delta.tool_calls for delta in deltas)
        return _openai_part(read, text, has_more)


DIALECTS: dict[str, Callable[[Asking], Dialect]] = {
    "generate": NativeDialect,
    "completions": CompletionsDialect,
    "chat": ChatDialect,
}


class _FinishReasonRead(msgspec.Struct):
    type: str


class _MetaInfoRead(msgspec.Struct):
    completion_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    attempts: int | None = None
    finish_reason: _FinishReasonRead | None = None


class _NativeEventRead(msgspec.Struct):
    """An event of /generate. Text and ids grow with the answer, so that they are read at its end
    alone."""

    text: msgspec.Raw = msgspec.Raw(b'""')
    output_ids: msgspec.Raw = msgspec.Raw(b"[]")
    meta_info: _MetaInfoRead = msgspec.field(default_factory=_MetaInfoRead)
    error: Any = None


class _DeltaRead(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _ChoiceRead(msgspec.Struct):
    text: str = ""
    delta: _DeltaRead | None = None


class _CachedRead(msgspec.Struct):
    cached_tokens: int | None = None


class _UsageRead(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _CachedRead | None = None


class _OpenAIEventRead(msgspec.Struct):
    choices: list[_ChoiceRead] = []
    usage: _UsageRead | None = None
    error: Any = None


_NATIVE = msgspec.json.Decoder(_NativeEventRead)
_OPENAI = msgspec.json.Decoder(_OpenAIEventRead)


def _openai_part(read: _OpenAIEventRead, text: str, has_more: bool = False) -> AnswerPart:
    if read.error is not None:
        return _failed(read.error)
    usage = read.usage or _UsageRead()
    details = usage.prompt_tokens_details or _CachedRead()
    return AnswerPart(
        has_content=bool(text) or has_more,
        num_tokens=usage.completion_tokens,
        new_text=text,
        num_prompt_tokens=usage.prompt_tokens,
        num_cached_tokens=details.cached_tokens,
    )


def _common(asking: Asking, turn: UserTurn) -> Json:
    """Returns what both of OpenAI's APIs are told. `ignore_eos` is an extension that SGLang, vLLM
    and kvrelay know; it is left out where it is not wanted, since others refuse it."""
    extension = {"ignore_eos": True} if asking.ignore_eos else {}
    return {
        "model": asking.model,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    } | extension


def _prompt(past: Sequence[PastTurn], turn: UserTurn, vocabulary: range) -> str | list[int]:
    """Returns the whole dialogue up to the turn, as text or as token ids, as the turn itself is."""
    if isinstance(turn.content, str):
        return "".join(f"{_text_of(one.turn)}{one.text}" for one in past) + turn.content
    ids: list[int] = []
    for earlier in past:
        assert not isinstance(earlier.turn.content, str), "a dialogue is of one kind"
        ids += token_ids(earlier.turn.content, vocabulary)
        ids += earlier.output_ids or token_ids([_made_up_answer(earlier.turn)], vocabulary)
    return ids + token_ids(turn.content, vocabulary)


def _made_up_answer(turn: UserTurn) -> Passage:
    assert not isinstance(turn.content, str)
    return Passage(f"answer to {turn.content[-1].seed}", turn.num_output_tokens)


def _text_of(turn: UserTurn) -> str:
    return turn.content if isinstance(turn.content, str) else words(turn.content)


def _all_ids(read: _NativeEventRead) -> tuple[int, ...]:
    """Returns the ids of a whole answer, none from a server that sends only what is new."""
    ids = msgspec.json.decode(read.output_ids, type=tuple[int, ...])
    return ids if len(ids) == read.meta_info.completion_tokens else ()


def _failed(error: Any) -> AnswerPart:
    """Returns what an error in a stream tells: a short name, which it is counted by, and what it
    says."""
    if not isinstance(error, dict):
        return AnswerPart(failure="stream error", message=str(error))
    name = f"stream error {error.get('code') or error.get('type') or ''}".strip()
    return AnswerPart(failure=name, message=str(error.get("message") or ""))
