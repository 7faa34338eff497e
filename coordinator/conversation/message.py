"""The values of a chat, in no dialect of HTTP: tools and the parts of an answer. Pure.

The dialects (`coordinator/http/`) read their requests into these values and write their answers
from them; how a model's family writes calls and thoughts as text is in the files beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    """The JSON schema of its arguments; None: it takes none."""
    is_strict: bool = False
    """The arguments of every call have to follow the schema, also where the model may choose."""


@dataclass(frozen=True)
class ToolChoice:
    """Whether the model may, must or must not call tools."""

    kind: Literal["none", "auto", "required", "named"] = "auto"
    name: str = ""
    """The tool that must be called, if `kind` is "named"."""
    is_parallel: bool = True
    """One message may have several calls."""


@dataclass(frozen=True)
class ReasoningDelta:
    """More of what the model thinks, before its answer or apart from it."""

    text: str


@dataclass(frozen=True)
class TextDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True)
class ToolCallBegun:
    """The next call of a message has begun. `index` counts the calls of the message from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class ToolArgumentsDelta:
    """More of the arguments of a call. All pieces of one call together are a JSON object."""

    index: int
    text: str


MessageDelta = ReasoningDelta | TextDelta | ToolCallBegun | ToolArgumentsDelta
"""A new part of an assistant's message. A call ends where the next part of another kind or index
begins, or with the message."""


@dataclass(frozen=True)
class ToolCall:
    """A whole call of a tool."""

    name: str
    arguments: str
    """A JSON object."""


@dataclass(frozen=True)
class AssistantMessage:
    """A whole message of the model."""

    text: str
    reasoning: str
    """What the model thought before; "" if it did not."""
    tool_calls: Sequence[ToolCall] = ()


def message_of(deltas: Sequence[MessageDelta]) -> AssistantMessage:
    """Returns the message that `deltas`, all of them, are the parts of."""
    names: list[str] = []
    arguments: list[list[str]] = []
    texts: list[str] = []
    thoughts: list[str] = []
    for delta in deltas:
        if isinstance(delta, TextDelta):
            texts.append(delta.text)
        elif isinstance(delta, ReasoningDelta):
            thoughts.append(delta.text)
        elif isinstance(delta, ToolCallBegun):
            names.append(delta.name)
            arguments.append([])
        else:
            arguments[delta.index].append(delta.text)
    calls = [ToolCall(n, "".join(a)) for n, a in zip(names, arguments, strict=True)]
    return AssistantMessage("".join(texts), "".join(thoughts), calls)


class MessageParser(Protocol):
    """Takes the text of one answer apart while it grows. Whatever the text is, nothing of it is
    lost and nothing raises: what is no call is text."""

    def feed(self, text: str) -> Sequence[MessageDelta]:
        """Takes more of the text; returns the parts that are certain now."""
        ...

    def finish(self) -> Sequence[MessageDelta]:
        """Returns what was held back: the text has ended."""
        ...


class MessageForm(Protocol):
    """How one model writes thoughts and calls."""

    @property
    def needs_special_tokens(self) -> bool:
        """True if marks that the parser looks for are special tokens, which the text of an answer
        leaves out unless it is asked to show them."""
        ...

    def parser(self, tools: Sequence[Tool], choice: ToolChoice, thinks: bool) -> MessageParser:
        """Returns a parser for one answer. With `choice` "none" or without tools it finds no
        calls. `thinks`: the chat lets the model think; without it no reasoning is looked for."""
        ...

    def grammar(
        self, tools: Sequence[Tool], choice: ToolChoice, thinks: bool
    ) -> tuple[str, str] | None:
        """Returns the kind and the source of the grammar that makes the model keep to `choice`, as
        `GrammarCompiler.compile` takes them; None if it is free to do what it wants."""
        ...
