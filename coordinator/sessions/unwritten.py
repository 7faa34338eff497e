"""What Redis has to be told of turns when it is back. Pure."""

from __future__ import annotations

MAX_UNWRITTEN = 1_000
"""How many turns may wait for Redis; the oldest of more are forgotten."""
Turns = dict[tuple[str, str], bytes | None]


class UnwrittenTurns:
    """The ends of turns that Redis did not hear of, by session and rid: an answer as bytes, or None
    for a turn that is to be forgotten."""

    def __init__(self) -> None:
        self._turns: Turns = {}

    def __len__(self) -> int:
        return len(self._turns)

    def add(self, session_id: str, rid: str, answer: bytes | None) -> None:
        """Keeps the end of a turn."""
        self._turns[session_id, rid] = answer
        while len(self._turns) > MAX_UNWRITTEN:
            del self._turns[next(iter(self._turns))]

    def of(self, session_id: str | None) -> Turns:
        """Returns those of a session, or all (None), in the order in which they ended."""
        return {
            turn: answer
            for turn, answer in self._turns.items()
            if session_id is None or turn[0] == session_id
        }

    def written(self, session_id: str, rid: str) -> None:
        """Forgets the end of a turn, which Redis knows now."""
        self._turns.pop((session_id, rid), None)
