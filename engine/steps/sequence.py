"""`Sequence`: one request's tokens and pages on a node, cut into slices for steps. Pure."""

from __future__ import annotations

import typing
from dataclasses import dataclass

import numpy as np

from engine.cache.prefix_cache import Lease
from protocol.sampling import Sampling, TokenLogprobs

UNKNOWN = -1
"""Stands for a token that an earlier step samples and whose id is not known here yet."""


@dataclass(frozen=True, eq=False)
class Slice:
    """The part of one sequence that a step computes.

    `pages` is the sequence's page table; it covers `start + len(token_ids)` tokens. `sampling`
    None: no token is wanted, as after an inner chunk of a prompt.
    """

    token_ids: typing.Sequence[int]
    start: int
    pages: typing.Sequence[int] | np.ndarray
    sampling: Sampling | None
    history: typing.Sequence[int] = ()
    """All tokens up to the end of the slice; given if `sampling.needs_history`."""
    follows: int | None = None
    """`token_ids` is [UNKNOWN]: what the step before this one samples for its slice of this
    position."""


@dataclass(frozen=True)
class Sampled:
    """What a step sampled for one slice."""

    token: int
    logprobs: TokenLogprobs | None = None
    """If the slice's sampling asks for them."""


class Sequence:
    """Tokens known so far, of which the first `num_computed` have their KV in the lease's pages,
    and those behind them are computed by steps that are under way."""

    def __init__(
        self, tokens: list[int], lease: Lease, sampling: Sampling, num_computed: int
    ) -> None:
        self.tokens = tokens
        self.lease = lease
        self.sampling = sampling
        self.num_computed = num_computed
        self.num_given = len(tokens)
        """Those that it began with: a prompt, or an answer that is continued."""
        self._num_under_way = 0
        self._position = 0
        """Of the newest slice in its step."""
        self._pages = np.array(lease.pages, dtype=np.int32)

    @property
    def num_uncomputed(self) -> int:
        return len(self.tokens) - self.num_computed

    @property
    def num_planned(self) -> int:
        """Tokens that are computed, or are by steps under way; one more than there are `tokens` if
        the newest one is not known yet and its KV is being computed already."""
        return self.num_computed + self._num_under_way

    @property
    def is_filling(self) -> bool:
        """Some of what it began with is not computed yet."""
        return self.num_computed < self.num_given

    @property
    def has_chunk(self) -> bool:
        """Its next slice is a chunk of what it began with."""
        return self.num_planned < self.num_given

    @property
    def is_sampling(self) -> bool:
        """A step under way samples its next token."""
        return self.num_planned >= len(self.tokens)

    def next_slice(self, max_tokens: int, position: int) -> Slice:
        """Up to `max_tokens` tokens; asks for a sampled token if they reach the end.

        `position`: that the slice has in its step, which is under way from now on. Behind the
        last token comes the one that the step before samples.
        """
        start = self.num_planned
        stop = max(min(start + max_tokens, len(self.tokens)), start + 1)
        sampling = self.sampling if stop >= len(self.tokens) else None
        follows = self._position if start == len(self.tokens) else None
        needs_history = sampling is not None and sampling.needs_history
        assert follows is None or not needs_history, "its history is not known yet"
        self._position = position
        self._num_under_way += stop - start
        return Slice(
            token_ids=self.tokens[start:stop] if follows is None else [UNKNOWN],
            start=start,
            pages=self._page_table(),
            sampling=sampling,
            history=self.tokens[:stop] if needs_history else (),
            follows=follows,
        )

    def computed(self, part: Slice) -> None:
        """The step of this slice, the oldest one under way, is over."""
        self._num_under_way -= len(part.token_ids)
        self.num_computed += len(part.token_ids)

    def _page_table(self) -> np.ndarray:
        """A lease may have grown; slices made before keep the table that they have."""
        pages = self.lease.pages
        if len(self._pages) < len(pages):
            grown = np.array(pages[len(self._pages) :], dtype=np.int32)
            self._pages = np.concatenate((self._pages, grown))
        return self._pages
