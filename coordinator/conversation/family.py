"""`FamilyForm`: how the models of one family write thoughts and calls. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.conversation import formats
from coordinator.conversation.calls.format import CallFormat
from coordinator.conversation.calls.no_calls import NoCalls
from coordinator.conversation.formats import TextFormat
from coordinator.conversation.message import Thinking, Tool, ToolChoice
from coordinator.conversation.parser import AnswerParser
from coordinator.conversation.thoughts import ThoughtFormat
from coordinator.grammars.error import GrammarError
from coordinator.grammars.kinds import ANY_JSON, GrammarKind


@dataclass(frozen=True)
class FamilyForm:
    """A MessageForm."""

    calls: CallFormat
    thought: ThoughtFormat | None
    """None: the model does not think."""
    needs_special_tokens: bool = False

    @property
    def reads_calls(self) -> bool:
        return not isinstance(self.calls, NoCalls)

    def thinking(self, prompt: str) -> Thinking:
        return self.thought.thinking(prompt) if self.thought else "off"

    def parser(self, tools: Sequence[Tool], choice: ToolChoice, thinking: Thinking) -> AnswerParser:
        calls = self.calls if tools and choice.kind != "none" else NoCalls()
        return AnswerParser(calls, tools, self.thought, thinking)

    def grammar(
        self, tools: Sequence[Tool], choice: ToolChoice, thinking: Thinking
    ) -> tuple[GrammarKind, str] | None:
        try:
            answer = self._answer(tools, choice) if self.reads_calls else None
            return self._tag(answer, thinking) if answer else None
        except RecursionError:
            raise GrammarError("the parameters of a tool are nested too deeply") from None

    def _answer(self, tools: Sequence[Tool], choice: ToolChoice) -> TextFormat | None:
        if choice.kind == "named":
            named = [tool for tool in tools if tool.name == choice.name]
            return self.calls.grammar(named, is_parallel=False)
        if choice.kind == "required":
            return self.calls.grammar(tools, choice.is_parallel)
        if choice.kind == "auto" and any(tool.is_strict for tool in tools):
            return self.calls.free_grammar(tools, choice.is_parallel)
        return None

    def grammar_after_thought(
        self, kind: GrammarKind, source: str, thinking: Thinking
    ) -> tuple[GrammarKind, str]:
        if thinking == "off" or not self.thought or kind == "structural_tag":
            return kind, source
        if kind == "regex":
            return self._tag(formats.regex(source), thinking)
        if kind == "ebnf":
            return self._tag({"type": "grammar", "grammar": source}, thinking)
        try:
            schema = {"type": "object"} if source == ANY_JSON else json.loads(source)
            return self._tag(formats.json_value(schema), thinking)
        except (ValueError, RecursionError):
            return kind, source  # which the compiler refuses, with its reason

    def _tag(self, answer: TextFormat, thinking: Thinking) -> tuple[GrammarKind, str]:
        if self.thought:
            answer = self.thought.grammar(thinking, answer)
        return "structural_tag", json.dumps({"type": "structural_tag", "format": answer})
