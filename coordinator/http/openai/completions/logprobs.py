"""Logprobs as completions have them: lists with an entry for each token. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from coordinator.answers.answer import Answer
from coordinator.answers.token_pieces import TokenPieces
from protocol.prompt_logprobs import rows_of


class CompletionLogprobs:
    """The lists of one answer, which are taken as its tokens come."""

    def __init__(self, answer: Answer, pieces: TokenPieces, shown: TokenPieces) -> None:
        """`pieces` has the texts of all tokens; `shown` those that the text of the answer has,
        which offsets are counted in."""
        self._answer = answer
        self._pieces = pieces
        self._shown = shown
        self._num_taken = 0
        self._offset = 0
        """Where the text of the next token begins."""

    def take(self, with_prompt: bool = False) -> dict[str, Any]:
        """Returns the lists of the tokens that came since the last call; before them those of the
        prompt, if they are wanted now."""
        lists: dict[str, Any] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        answer = self._answer
        if with_prompt:
            self._add_prompt(lists)
        for i in range(self._num_taken, len(answer.logprobs)):
            logprobs = answer.logprobs[i]
            self._add(lists, answer.output_ids[i], logprobs.chosen, logprobs.top)
        self._num_taken = len(answer.logprobs)
        return lists

    def _add_prompt(self, lists: dict[str, Any]) -> None:
        tokens, logprobs = self._answer.request.tokens, self._answer.prompt_logprobs
        self._add(lists, tokens[0], None, ())  # nothing comes before it
        if logprobs is None:
            return
        rows = rows_of(logprobs, 0, logprobs.num_positions)
        for token, row in zip(tokens[logprobs.start :], rows, strict=True):
            self._add(lists, token, row.chosen, zip(row.top_ids, row.top, strict=True))

    def _add(
        self,
        lists: dict[str, Any],
        token: int,
        logprob: float | None,
        top: Iterable[tuple[int, float]],
    ) -> None:
        text = self._text(token)
        likely: dict[str, float] | None = None
        if logprob is not None:
            likely = {}
            for other, its_logprob in top:
                likely.setdefault(self._text(other), its_logprob)
            likely.setdefault(text, logprob)
        lists["tokens"].append(text)
        lists["token_logprobs"].append(logprob)
        lists["top_logprobs"].append(likely)
        lists["text_offset"].append(self._offset)
        self._offset += len(self._shown.piece(token))

    def _text(self, token: int) -> str:
        piece = self._pieces.piece(token)
        return piece if isinstance(piece, str) else piece.decode(errors="replace")
