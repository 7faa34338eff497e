"""The lists of a prompt's logprobs in SGLang's meta_info. Pure.

They come with the first tokens of an answer, whole, and are in every object of a stream, as
SGLang's are. So they are encoded once, and objects have the bytes. A long prompt is encoded piece
by piece, between which others have their turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import msgspec

from coordinator.answers.answer import Answer
from coordinator.answers.request import DecodeFunction
from protocol.prompt_logprobs import PromptLogprobs, rows_of

LogprobEntry = tuple[float | None, int, str | None]
"""A logprob, its token id, and the token's text if that is asked for. Only the token at position 0
of a prompt has no logprob."""
PIECE_NUMBERS = 4096
"""So many logprobs are encoded at once: about 2 ms."""


class LogprobEntries:
    """Makes entries; remembers the texts of tokens."""

    def __init__(self, decode_token: DecodeFunction | None) -> None:
        """`decode_token` makes the texts of tokens; None: they have none."""
        self._decode_token = decode_token
        self._texts: dict[int, str] = {}

    def one(self, logprob: float | None, token: int) -> LogprobEntry:
        return logprob, token, None if self._decode_token is None else self._text(token)

    def many(self, logprobs: Sequence[float], tokens: Sequence[int]) -> list[LogprobEntry]:
        if self._decode_token is None:
            return list(zip(logprobs, tokens, repeat(None)))
        return list(zip(logprobs, tokens, map(self._text, tokens), strict=True))

    def _text(self, token: int) -> str:
        text = self._texts.get(token)
        if text is None:
            assert self._decode_token is not None
            text = self._texts[token] = self._decode_token([token])
        return text


class InputLogprobs:
    """The three lists of one answer: of the prompt's own tokens, of the likeliest, and of wanted
    ones."""

    def __init__(self, answer: Answer, entries: LogprobEntries) -> None:
        self._answer = answer
        self._entries = entries
        self._pieces: tuple[list[bytes], ...] = ([], [], [])
        """For each list its entries so far, encoded and without brackets."""
        self._num_encoded = 0
        """Positions that are in the pieces."""
        self._lists: tuple[msgspec.Raw, ...] | None = None
        """Set when all are encoded."""

    def encode_piece(self) -> bool:
        """Encodes the next piece of what has come; returns whether there is more of it."""
        logprobs, start = self._answer.prompt_logprobs, self._start
        if self._lists is not None or start < 0:
            return False
        if logprobs is None and self._num_computed > 0:
            return False
        if self._num_encoded == 0 and start == 0:
            first = self._entries.one(None, self._answer.request.tokens[0])
            self._append([first], [None], [None])
        elif logprobs is not None and self._num_encoded < self._num_positions:
            self._encode_rows(logprobs)
        if self._num_encoded < self._num_positions:
            return True
        self._lists = tuple(msgspec.Raw(b"[%b]" % b",".join(p)) for p in self._pieces)
        return False

    def lists(self) -> Sequence[msgspec.Raw | list[object]]:
        """Returns the encoded lists; empty ones until the logprobs have come, and if none are
        wanted."""
        while self.encode_piece():
            pass
        return self._lists or ([], [], [])

    @property
    def _start(self) -> int:
        return self._answer.request.sampling.prompt_logprobs_from

    @property
    def _num_positions(self) -> int:
        return len(self._answer.request.tokens) - self._start

    @property
    def _num_computed(self) -> int:
        """Positions that nodes tell of."""
        return len(self._answer.request.tokens) - max(1, self._start)

    def _encode_rows(self, logprobs: PromptLogprobs) -> None:
        width = 1 + logprobs.num_top + logprobs.num_wanted
        first = self._start + self._num_encoded - logprobs.start
        stop = min(first + max(1, PIECE_NUMBERS // width), logprobs.num_positions)
        rows = rows_of(logprobs, first, stop)
        position = logprobs.start + first
        tokens = self._answer.request.tokens[position : position + len(rows)]
        wanted_ids = self._answer.request.sampling.logprob_token_ids
        many = self._entries.many
        self._append(
            many([row.chosen for row in rows], tokens),
            [many(row.top, row.top_ids) for row in rows],
            [many(row.wanted, wanted_ids) for row in rows],
        )

    def _append(self, *lists: Sequence[object]) -> None:
        self._num_encoded += len(lists[0])
        for pieces, entries in zip(self._pieces, lists, strict=True):
            pieces.append(msgspec.json.encode(entries)[1:-1])
