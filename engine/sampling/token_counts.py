"""`TokenCounts`: which tokens each of some sequences has had, kept on the device.

It knows no sequence: whoever opens a row says what is added to it, and closes it. Nothing here
waits for the device, which also knows tokens that the host has not read yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.batches.batch import known_ids
from engine.rows import upload

FIRST_ROWS = 4
"""Rows that are made for the first sequence; then their number doubles whenever they are taken."""


@dataclass(frozen=True)
class SeenTokens:
    """Which tokens some sequences have had. It is a copy, which may be changed."""

    in_prompt: Tensor
    """[n, vocab] bool: the prompt has the token. Only prompts that were added count."""
    num_in_answer: Tensor
    """[n, vocab] float32: how often the answer has it, a whole number."""


class TokenCounts:
    """Has one row over the vocabulary per open sequence, which takes 5 bytes for each of its
    tokens."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._in_answer = torch.zeros(0, vocab_size, device=device)
        self._free_rows: list[int] = []

    @property
    def num_rows(self) -> int:
        """How many open sequences the tensors have room for."""
        return len(self._in_answer)

    def open(self) -> int:
        """Returns a row for a new sequence, which has had no token."""
        if not self._free_rows:
            self._grow()
        row = self._free_rows.pop()
        self._in_prompt[row].zero_()
        self._in_answer[row].zero_()
        return row

    def close(self, row: int) -> None:
        """Gives the row back. Steps under way may still read it: who opens it comes behind them on
        the device."""
        assert row not in self._free_rows, "it is closed twice"
        self._free_rows.append(row)

    def add_prompt(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Adds `tokens[i]` to the prompt of row `rows[i]`."""
        row, token = upload(np.array([rows, tokens], dtype=np.int64), self._device)
        self._in_prompt.view(-1).index_fill_(0, self._places(row, token), True)

    def add_answer(
        self,
        rows: Sequence[int],
        tokens: Sequence[int],
        sources: Sequence[int],
        previous_tokens: Tensor | None,
    ) -> None:
        """Adds `tokens[i]` to the answer of row `rows[i]`. A token that the host does not know is
        `previous_tokens[sources[i]]`, what the step before sampled, as in `StepArrays`."""
        packed = np.array([rows, tokens, sources], dtype=np.int64)
        row, token, source = upload(packed, self._device)
        if previous_tokens is not None:
            token = known_ids(token, source, previous_tokens)
        ones = torch.ones_like(token, dtype=torch.float32)
        # Adding whole numbers is exact in any order, whichever way the device orders them.
        self._in_answer.view(-1).scatter_add_(0, self._places(row, token), ones)

    def read(self, rows: Sequence[int]) -> SeenTokens:
        """Returns a copy of what the sequences of these rows have had, in the order of `rows`."""
        index = upload(np.array(rows, dtype=np.int64), self._device)
        return SeenTokens(
            self._in_prompt.index_select(0, index), self._in_answer.index_select(0, index)
        )

    def _places(self, rows: Tensor, tokens: Tensor) -> Tensor:
        return rows * self._in_answer.shape[1] + tokens

    def _grow(self) -> None:
        count = len(self._in_answer)
        more = max(FIRST_ROWS, count)
        self._in_prompt, self._in_answer = (
            torch.cat([table, table.new_zeros(more, table.shape[1])])
            for table in (self._in_prompt, self._in_answer)
        )
        self._free_rows = list(range(count + more - 1, count - 1, -1))
