"""`Sequence`: one request's tokens and pages on a node, cut into slices for steps. Pure."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from engine.cache import Lease
from protocol.sampling import Sampling, TokenLogprobs

UNKNOWN = -1
"""Stands for a token that an earlier step samples and whose id is not known here yet."""


@dataclass(frozen=True)
class Slice:
    """The part of one sequence that a step computes.

    `pages` is the sequence's page table; it covers `start + len(token_ids)` tokens. `sampling`
    None: no token is wanted, as after an inner chunk of a prompt.
    """

    token_ids: typing.Sequence[int]
    start: int
    pages: typing.Sequence[int]
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


@dataclass(eq=False)
class Sequence:
    """Tokens known so far, of which the first `num_computed` have their KV in `lease.pages`."""

    tokens: list[int]
    lease: Lease
    sampling: Sampling
    num_computed: int

    @property
    def num_uncomputed(self) -> int:
        return len(self.tokens) - self.num_computed

    def next_slice(self, max_tokens: int) -> Slice:
        """Up to `max_tokens` tokens; asks for a sampled token if they reach the end."""
        stop = min(self.num_computed + max_tokens, len(self.tokens))
        return Slice(
            token_ids=self.tokens[self.num_computed : stop],
            start=self.num_computed,
            pages=self.lease.pages,
            sampling=self.sampling if stop == len(self.tokens) else None,
        )
