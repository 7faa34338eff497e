"""How a model writes thoughts and calls, where it does so: the form that its chats have. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.conversation.message import (
    MessageDelta,
    MessageForm,
    MessageParser,
    TextDelta,
    Thinking,
    Tool,
    ToolChoice,
)
from coordinator.grammars.kinds import GrammarKind


class TextOnlyForm:
    """A model that writes text alone: no calls, no thoughts."""

    needs_special_tokens = False
    reads_calls = False

    def thinking(self, prompt: str) -> Thinking:
        """Returns "off"."""
        return "off"

    def parser(
        self, tools: Sequence[Tool], choice: ToolChoice, thinking: Thinking
    ) -> MessageParser:
        """Returns a parser for one answer."""
        return TextOnlyParser()

    def grammar(
        self, tools: Sequence[Tool], choice: ToolChoice, thinking: Thinking
    ) -> tuple[GrammarKind, str] | None:
        """Returns None: there is no form of calls that the model could be made to keep to."""
        return None

    def grammar_after_thought(
        self, kind: GrammarKind, source: str, thinking: Thinking
    ) -> tuple[GrammarKind, str]:
        """Returns the same grammar."""
        return kind, source


class TextOnlyParser:
    """Finds text, and nothing else."""

    def feed(self, text: str) -> Sequence[MessageDelta]:
        """Returns the text as it is."""
        return (TextDelta(text),) if text else ()

    def finish(self) -> Sequence[MessageDelta]:
        """Returns nothing: nothing was held back."""
        return ()


TEXT_ONLY_FORM: MessageForm = TextOnlyForm()
