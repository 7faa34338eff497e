"""`Backend`: who answers the questions of a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kvrelay.answers import Generated
from kvrelay.language.role_markers import RoleMarkers


@dataclass(frozen=True)
class ChoiceScore:
    """How likely one choice of a selection is."""

    choice: str
    mean_logprob: float
    """The mean over its tokens, so that long choices are not at a disadvantage."""
    num_tokens: int


@dataclass(frozen=True)
class Decision:
    """What was selected, and how likely each choice was."""

    choice: str
    scores: tuple[ChoiceScore, ...] = ()


class Backend(Protocol):
    """Answers questions about texts. Threads ask at the same time."""

    def markers(self) -> RoleMarkers:
        """Returns the texts around what roles say. Raises LanguageError if none are known."""

    def warm(self, text: str) -> None:
        """Lets the pages of a text be computed, so that the texts that begin with it share them."""

    def generate(self, prompt: str, params: Mapping[str, Any]) -> Generated:
        """Returns what the model writes after a prompt."""

    def stream(self, prompt: str, params: Mapping[str, Any]) -> Iterator[Generated]:
        """Yields what the model writes after a prompt as it grows: each time all of it."""

    def select(self, prefix: str, choices: Sequence[str]) -> Decision:
        """Returns the likeliest continuation of a text among `choices`."""


def likeliest(scores: Sequence[ChoiceScore]) -> Decision:
    """Returns the decision for the greatest mean logprob; among equals the first."""
    best = max(scores, key=lambda score: score.mean_logprob)
    return Decision(best.choice, tuple(scores))
