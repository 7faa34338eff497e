"""The values of a chat, in no dialect of HTTP: tools and the parts of an answer. Pure.

The dialects (`coordinator/http/`) read their requests into these values and write their answers
from them; how a model's family writes calls and thoughts as text is in the files beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from coordinator.grammars.kinds import GrammarKind


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


@dataclass(frozen=True)
class ToolCallBroken:
    """A call that has begun will never be whole: what follows is no JSON, or the answer ended. A
    stream can only leave it as it is; a whole message has the call's text in place of it."""

    index: int
    """It is the last call that has begun. The next one gets the next index."""
    text: str
    """All that the model wrote of the call, its marks included."""


MessageDelta = ReasoningDelta | TextDelta | ToolCallBegun | ToolArgumentsDelta | ToolCallBroken
"""A new part of an assistant's message. A call ends where the next part of another kind or index
begins, or with the message."""

Thinking = Literal["off", "free", "open"]
"""How an answer may begin: without a thought, with one if the model wants, or inside of one that
the prompt has opened."""


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
    names: dict[int, str] = {}
    arguments: dict[int, list[str]] = {}
    texts: list[str] = []
    thoughts: list[str] = []
    for delta in deltas:
        if isinstance(delta, TextDelta):
            texts.append(delta.text)
        elif isinstance(delta, ReasoningDelta):
            thoughts.append(delta.text)
        elif isinstance(delta, ToolCallBegun):
            names[delta.index] = delta.name
            arguments[delta.index] = []
        elif isinstance(delta, ToolArgumentsDelta):
            arguments[delta.index].append(delta.text)
        else:
            del names[delta.index]
            texts.append(delta.text)
    calls = tuple(ToolCall(name, "".join(arguments[index])) for index, name in names.items())
    return AssistantMessage("".join(texts), "".join(thoughts), calls)


class MessageParser(Protocol):
    """Takes the text of one answer apart while it grows. Whatever the text is, nothing of it is
    lost but white space beside thoughts and calls, and nothing raises: what is no call is text."""

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

    @property
    def reads_calls(self) -> bool:
        """False if the operator chose that no calls are looked for; tools are of no use then."""
        ...

    def thinking(self, prompt: str) -> Thinking:
        """Returns how an answer to `prompt`, the text of a rendered chat, may begin. Where the chat
        forbids thoughts, the caller takes "off" instead."""
        ...

    def parser(
        self, tools: Sequence[Tool], choice: ToolChoice, thinking: Thinking
    ) -> MessageParser:
        """Returns a parser for one answer. With `choice` "none" or without tools it finds no
        calls. Calls of other names than those of `tools` are text."""
        ...

    def grammar(
        self, tools: Sequence[Tool], choice: ToolChoice, thinking: Thinking
    ) -> tuple[GrammarKind, str] | None:
        """Returns the kind and the source of the grammar that makes the model keep to `choice`, as
        `GrammarCompiler.compile` takes them; None if it is free to do what it wants. A tool that
        `choice` names is one of `tools`. Raises GrammarError for schemas that calls of the model's
        format cannot be made to follow."""
        ...

    def grammar_after_thought(
        self, kind: GrammarKind, source: str, thinking: Thinking
    ) -> tuple[GrammarKind, str]:
        """Returns a client's grammar for an answer that may begin with a thought, which is free. A
        structural tag stays as it is: it says itself what comes first."""
        ...
