"""Logprobs of one answer, in the lists that SGLang puts into meta_info."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from coordinator.http.schema import LogprobParams
from protocol.sampling import TokenLogprobs

Entry = tuple[float, int, str | None]
"""(logprob, token id, its text if asked for)."""


class AnswerLogprobs:
    """Grows with the answer, token by token, whatever node made them.

    `decode`: ids to text, special tokens included.
    """

    def __init__(self, params: LogprobParams, decode: Callable[[Sequence[int]], str]) -> None:
        self._params = params
        self._decode = decode
        self._texts: dict[int, str] = {}
        self._chosen: list[Entry] = []
        self._top: list[list[Entry]] = []
        self._wanted: list[list[Entry]] = []

    def push(self, token: int, logprobs: TokenLogprobs) -> None:
        """The next token of the answer."""
        self._chosen.append(self._entry(logprobs.chosen, token))
        self._top.append([self._entry(logprob, top) for top, logprob in logprobs.top])
        wanted = zip(logprobs.wanted, self._params.token_ids, strict=True)
        self._wanted.append([self._entry(*one) for one in wanted])

    def meta(self) -> dict[str, list[Any]]:
        """All so far. Those of the prompt are empty."""
        lists: dict[str, list[Any]] = {"token": self._chosen}
        if self._params.num_top > 0:
            lists["top"] = self._top
        if self._params.token_ids:
            lists["token_ids"] = self._wanted
        meta: dict[str, list[Any]] = {}
        for name, entries in lists.items():
            meta[f"input_{name}_logprobs"] = []
            meta[f"output_{name}_logprobs"] = list(entries)
        return meta

    def _entry(self, logprob: float, token: int) -> Entry:
        if not self._params.with_text:
            return logprob, token, None
        if token not in self._texts:
            self._texts[token] = self._decode([token])
        return logprob, token, self._texts[token]
