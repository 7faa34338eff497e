"""`AnswerLengths`: how long an answer will be, going by those that have ended. Pure."""

from __future__ import annotations

FIRST_GUESS_TOKENS = 64
MEMORY = 0.98
"""What the mean keeps of itself with each further answer."""


class AnswerLengths:
    """Knows the mean length of recent answers, in tokens."""

    def __init__(self) -> None:
        self._mean = float(FIRST_GUESS_TOKENS)

    def observe(self, num_tokens: int) -> None:
        """Notes the length of an answer that has ended."""
        self._mean = MEMORY * self._mean + (1 - MEMORY) * num_tokens

    def expected(self, most: int) -> int:
        """Returns how many tokens an answer will have that may have `most`."""
        return min(most, round(self._mean))
