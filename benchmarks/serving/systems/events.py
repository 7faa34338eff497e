"""Reads the events of an answer as each system streams them. Pure.

The readers of SGLang and vLLM keep what they have read: their events have only what is new.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from kvrelay.bench.dialects import Asking, NativeDialect
from kvrelay.bench.results.record import AnswerPart


class EventReader(Protocol):
    """Reads one answer, event by event."""

    def read(self, event: bytes) -> AnswerPart:
        """Returns what an event tells. Raises msgspec.MsgspecError if it cannot be read."""
        ...


class KvrelayReader:
    """kvrelay's /generate: each event has the whole answer so far, which is read at its end."""

    def __init__(self) -> None:
        self._dialect = NativeDialect(Asking("", range(1), ignore_eos=True))

    def read(self, event: bytes) -> AnswerPart:
        return self._dialect.read(event)


class _MetaRead(msgspec.Struct):
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: dict[str, Any] | None = None


class _SglangRead(msgspec.Struct):
    output_ids: list[int] = []
    meta_info: _MetaRead = msgspec.field(default_factory=_MetaRead)
    error: Any = None


class _ChoiceRead(msgspec.Struct):
    token_ids: list[int] | None = None


class _CachedRead(msgspec.Struct):
    cached_tokens: int | None = None


class _UsageRead(msgspec.Struct):
    prompt_tokens: int | None = None
    prompt_tokens_details: _CachedRead | None = None


class _VllmRead(msgspec.Struct):
    choices: list[_ChoiceRead] = []
    usage: _UsageRead | None = None
    error: Any = None


_SGLANG = msgspec.json.Decoder(_SglangRead)
_VLLM = msgspec.json.Decoder(_VllmRead)


class SglangReader:
    """SGLang's /generate with --incremental-streaming-output."""

    def __init__(self) -> None:
        self._ids: list[int] = []

    def read(self, event: bytes) -> AnswerPart:
        read = _SGLANG.decode(event)
        if read.error is not None:
            return AnswerPart(failure="stream error")
        if (read.meta_info.finish_reason or {}).get("type") == "abort":
            return AnswerPart(failure="aborted")
        self._ids += read.output_ids
        return _part(self._ids, read.meta_info.prompt_tokens, read.meta_info.cached_tokens)


class VllmReader:
    """vLLM's /v1/completions with `return_token_ids`."""

    def __init__(self) -> None:
        self._ids: list[int] = []

    def read(self, event: bytes) -> AnswerPart:
        read = _VLLM.decode(event)
        if read.error is not None:
            return AnswerPart(failure="stream error")
        for choice in read.choices:
            self._ids += choice.token_ids or []
        usage = read.usage or _UsageRead()
        details = usage.prompt_tokens_details or _CachedRead()
        return _part(self._ids, usage.prompt_tokens, details.cached_tokens)


def _part(ids: list[int], num_prompt: int | None, num_cached: int | None) -> AnswerPart:
    return AnswerPart(
        has_content=bool(ids),
        num_tokens=len(ids),
        output_ids=tuple(ids),
        num_prompt_tokens=num_prompt,
        num_cached_tokens=num_cached,
    )
