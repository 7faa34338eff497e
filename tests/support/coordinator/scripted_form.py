"""A form of messages that is easy to write by hand: thoughts in (…), calls as [name:arguments]."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.conversation.message import (
    MessageDelta,
    MessageParser,
    ReasoningDelta,
    TextDelta,
    Thinking,
    Tool,
    ToolArgumentsDelta,
    ToolCallBegun,
    ToolChoice,
)
from coordinator.grammars.kinds import GrammarKind


class ScriptedForm:
    """A MessageForm."""

    needs_special_tokens = False
    reads_calls = True

    def thinking(self, prompt: str) -> Thinking:
        return "free"

    def parser(
        self, tools: Sequence[Tool], choice: ToolChoice, thinking: Thinking
    ) -> MessageParser:
        return ScriptedParser(bool(tools), thinking != "off")

    def grammar(
        self, tools: Sequence[Tool], choice: ToolChoice, thinking: Thinking
    ) -> tuple[GrammarKind, str] | None:
        if choice.kind == "required":
            return "regex", r"\[(" + "|".join(tool.name for tool in tools) + r"):\{\}\]"
        return ("regex", rf"\[{choice.name}:\{{\}}\]") if choice.kind == "named" else None

    def grammar_after_thought(
        self, kind: GrammarKind, source: str, thinking: Thinking
    ) -> tuple[GrammarKind, str]:
        return kind, source


class ScriptedParser:
    """Gives a part for each character that comes."""

    def __init__(self, has_tools: bool, thinks: bool) -> None:
        self._has_tools = has_tools
        self._thinks = thinks
        self._state = "text"
        self._name = ""
        self._num_calls = 0

    def feed(self, text: str) -> Sequence[MessageDelta]:
        return [delta for character in text for delta in self._next(character)]

    def finish(self) -> Sequence[MessageDelta]:
        return ()

    def _next(self, character: str) -> Sequence[MessageDelta]:
        if self._state == "text" and self._thinks and character == "(":
            self._state = "thought"
        elif self._state == "thought" and character == ")":
            self._state = "text"
        elif self._state == "text" and self._has_tools and character == "[":
            self._state, self._name = "name", ""
        elif self._state == "name" and character == ":":
            self._state = "arguments"
            self._num_calls += 1
            return [ToolCallBegun(self._num_calls - 1, self._name)]
        elif self._state == "name":
            self._name += character
        elif self._state == "arguments" and character == "]":
            self._state = "text"
        elif self._state == "arguments":
            return [ToolArgumentsDelta(self._num_calls - 1, character)]
        else:
            return [ReasoningDelta(character) if self._state == "thought" else TextDelta(character)]
        return ()
