"""Logprobs as chat completions have them. Pure."""

from __future__ import annotations

from typing import Any

from coordinator.answers.answer import Answer
from coordinator.answers.token_pieces import TokenPieces


class ChatLogprobs:
    """The entries of one answer's tokens, which are taken as they come."""

    def __init__(self, answer: Answer, pieces: TokenPieces) -> None:
        """`pieces` has the texts of tokens, special ones too."""
        self._answer = answer
        self._pieces = pieces
        self._num_taken = 0

    def take(self) -> dict[str, Any]:
        """Returns the entries of the tokens that came since the last call."""
        answer = self._answer
        first, self._num_taken = self._num_taken, len(answer.logprobs)
        num_top = answer.request.sampling.num_top_logprobs
        content = []
        for i in range(first, self._num_taken):
            logprobs = answer.logprobs[i]
            entry = self._entry(answer.output_ids[i], logprobs.chosen)
            entry["top_logprobs"] = [
                self._entry(token, logprob) for token, logprob in logprobs.top[:num_top]
            ]
            content.append(entry)
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self._pieces.piece(token)
        raw = piece if isinstance(piece, bytes) else piece.encode(errors="replace")
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}
