"""`KeptAnswers`: the tokens of answers that another coordinator may have to take over. Pure.

When a coordinator dies, the pages of its requests are free as soon as its lease has ended. What was
answered is little, and is kept a while longer: whoever takes an answer over goes on behind it.
Answers that have ended are kept too, as nobody knows whether their coordinator passed them on.
"""

from __future__ import annotations

from dataclasses import dataclass

KEEP_S = 30.0
"""How long a client may take to come back."""
MAX_KEPT_BYTES = 32 << 20
"""Bounds the tokens that are kept; the oldest answers go first."""


@dataclass(frozen=True)
class KeptAnswer:
    """What was answered of one request."""

    owner: str
    """The address of the coordinator that had the request."""
    tokens: bytes
    """Those that follow the prompt, as `token_bytes` makes them."""
    finish: str
    """Why it has ended; "" if it has not."""
    cached_tokens: int
    keep_until: float


class KeptAnswers:
    """Knows answers by their resume keys."""

    def __init__(self, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._answers: dict[str, KeptAnswer] = {}
        """The oldest first."""
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def keep(
        self, key: str, owner: str, tokens: bytes, finish: str, cached_tokens: int, now: float
    ) -> None:
        """Keeps an answer for a while, in place of what was kept of it before."""
        self._forget(key)
        self._answers[key] = KeptAnswer(owner, tokens, finish, cached_tokens, now + KEEP_S)
        self._num_bytes += len(tokens)
        self._expire(now)

    def get(self, key: str, now: float) -> KeptAnswer | None:
        """Returns what is kept of an answer; None if nothing is."""
        self._expire(now)
        return self._answers.get(key)

    def _expire(self, now: float) -> None:
        while self._answers:
            key, oldest = next(iter(self._answers.items()))
            if self._num_bytes <= self._max_bytes and now < oldest.keep_until:
                return
            self._forget(key)

    def _forget(self, key: str) -> None:
        kept = self._answers.pop(key, None)
        if kept is not None:
            self._num_bytes -= len(kept.tokens)
