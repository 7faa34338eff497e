"""How a model writes thoughts and calls, where it does so: the form that its chats have. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.conversation.message import (
    MessageDelta,
    MessageForm,
    MessageParser,
    TextDelta,
    Tool,
    ToolChoice,
)


class TextOnlyForm:
    """A model that writes text alone: no calls, no thoughts."""

    needs_special_tokens = False

    def parser(self, tools: Sequence[Tool], choice: ToolChoice, thinks: bool) -> MessageParser:
        """Returns a parser for one answer."""
        return TextOnlyParser()

    def grammar(
        self, tools: Sequence[Tool], choice: ToolChoice, thinks: bool
    ) -> tuple[str, str] | None:
        """Returns None: there is no form of calls that the model could be made to keep to."""
        return None


class TextOnlyParser:
    """Finds text, and nothing else."""

    def feed(self, text: str) -> Sequence[MessageDelta]:
        """Returns the text as it is."""
        return (TextDelta(text),) if text else ()

    def finish(self) -> Sequence[MessageDelta]:
        """Returns nothing: nothing was held back."""
        return ()


TEXT_ONLY_FORM: MessageForm = TextOnlyForm()
