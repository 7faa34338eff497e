"""`Sequence`: one request's tokens and pages on a node, cut into slices for steps. Pure."""

from __future__ import annotations

import typing

import msgspec
import numpy as np

from engine.cache.prefix_cache import HeldPages
from protocol.prompt_logprobs import PromptLogprobs
from protocol.sampling import Sampling, TokenLogprobs

UNKNOWN = -1
"""Stands for a token that an earlier step samples and whose id is not known here yet."""
NO_SEQUENCE = -1
"""Stands for the id of a sequence where there is none: such slices have no state in the runner."""


class ScoredTokens(msgspec.Struct, frozen=True):
    """Tokens of a prompt whose logprobs a slice is to give: each by the logits of the row before
    it."""

    first_row: int
    """The row of the slice that is before the first of them; the others follow one by one."""
    token_ids: typing.Sequence[int]
    """The last one may be the first token behind the slice."""
    sampling: Sampling
    """Says how many of the likeliest tokens, and which wanted ones, are asked for beside each."""


class Slice(msgspec.Struct, frozen=True, eq=False):
    """The part of one sequence that a step computes.

    `pages` is the sequence's page table, which covers `start + len(token_ids)` tokens. Without
    `sampling` no token is wanted, as after an inner chunk of a prompt.
    """

    token_ids: typing.Sequence[int]
    start: int
    pages: typing.Sequence[int] | np.ndarray
    sampling: Sampling | None
    follows: int | None = None
    """If it is given, `token_ids` is [UNKNOWN]: the token is the first one that the step before
    this one samples for its slice at this position."""
    sequence_id: int = NO_SEQUENCE
    """The sequence whose state in the runner this slice feeds, if `sampling.has_state`."""
    replay: typing.Sequence[int] = ()
    """The tokens right before `start` that the state was not fed yet. In the first slice that
    samples these are all of them."""
    scored: ScoredTokens | None = None
    """The tokens whose logprobs are wanted of this slice; None if there are none."""

    @property
    def end(self) -> int:
        """How many tokens the sequence has up to the end of the slice."""
        return self.start + len(self.token_ids)


class Sampled(msgspec.Struct, frozen=True):
    """What a step says of one slice: the token that it sampled, or several that follow each other,
    and logprobs of the prompt."""

    tokens: tuple[int, ...]
    """Empty if the slice wants logprobs of the prompt alone."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """The logprobs of each token, if the slice's sampling asks for them."""
    error: str = ""
    """Why there is no token, if there is none: the request cannot go on here."""
    prompt_logprobs: PromptLogprobs | None = None
    """Those of the slice's `scored` tokens."""


class Sequence:
    """The tokens of an admitted job that are known so far.

    The first `num_computed` of them have their KV in the held pages; steps under way compute those
    up to `num_planned`.
    """

    def __init__(
        self,
        tokens: list[int],
        held: HeldPages,
        sampling: Sampling,
        num_computed: int,
        sequence_id: int,
        scores_from: int | None = None,
    ) -> None:
        """`sequence_id` names the state of the sequence in the runner. No other sequence of the
        node may have it.

        `scores_from` is the first position of the prompt whose logprob is wanted of this sequence;
        None: no logprobs of the prompt are. The token before it is not computed yet.
        """
        self.tokens = tokens
        self.held = held
        self.sampling = sampling
        self.num_computed = num_computed
        self.sequence_id = sequence_id
        self.has_begun = False
        """Slices of it were made."""
        self.num_given = len(tokens)
        """The tokens that it began with: a prompt, or an answer that is continued."""
        self._scores_from = scores_from
        self._num_under_way = 0
        self._num_fed = 0
        """Tokens that the state in the runner has when the steps under way are over."""
        self._position = 0
        """The place of the newest slice in its step."""
        self._pages = np.array(held.pages, dtype=np.int32)

    @property
    def num_uncomputed(self) -> int:
        """How many known tokens have no KV in the pages yet."""
        return len(self.tokens) - self.num_computed

    @property
    def num_planned(self) -> int:
        """How many tokens are computed, or will be by steps under way. That is one more than there
        are `tokens` if the KV of a token that is not known yet is being computed already."""
        return self.num_computed + self._num_under_way

    @property
    def is_filling(self) -> bool:
        """True while some of the tokens that it began with are not computed."""
        return self.num_computed < self.num_given

    @property
    def has_chunk(self) -> bool:
        """True if its next slice is a chunk of the tokens that it began with."""
        return self.num_planned < self.num_given

    @property
    def is_sampling(self) -> bool:
        """True if a step under way samples its next token."""
        return self.num_planned >= len(self.tokens)

    @property
    def num_unplanned(self) -> int:
        """How many known tokens no step computes yet: the next slice needs so many to sample a
        token. It is 0 if that slice follows a token which a step under way samples."""
        return max(0, len(self.tokens) - self.num_planned)

    def samples_next(self, part: Slice) -> bool:
        """Returns whether what the step of `part`, now over, has sampled comes right behind the
        known tokens.

        It does not if the step was started ahead and the one before it turned out to sample several
        tokens: then the slice computed the first of these, and the others are known too.
        """
        return part.sampling is not None and part.end == len(self.tokens)

    def next_slice(self, max_tokens: int, position: int) -> Slice:
        """Returns a new slice of 1 to `max_tokens` tokens, which is under way from now on. If it
        reaches the end of the known tokens, it asks for a sampled one; if all of them are planned,
        it computes the token that the step before samples.

        `position` is that of the slice in its step.
        """
        start = self.num_planned
        # At least one token, which is beyond the known ones if all of these are planned.
        stop = max(min(start + max_tokens, len(self.tokens)), start + 1)
        sampling = self.sampling if stop >= len(self.tokens) else None
        follows = self._position if start == len(self.tokens) else None
        feeds_state = sampling is not None and sampling.has_state
        # Only slices that sample feed the state, so this one also brings what chunks before it have
        # computed.
        replay = self.tokens[self._num_fed : start] if feeds_state else ()
        if feeds_state:
            self._num_fed = stop
        self._position = position
        self.has_begun = True
        self._num_under_way += stop - start
        return Slice(
            token_ids=self.tokens[start:stop] if follows is None else [UNKNOWN],
            start=start,
            pages=self._page_table(),
            sampling=sampling,
            follows=follows,
            sequence_id=self.sequence_id,
            replay=replay,
            scored=self._scored(start, stop),
        )

    def computed(self, part: Slice) -> None:
        """Notes that the step of this slice, the oldest one under way, is over."""
        self._num_under_way -= len(part.token_ids)
        self.num_computed += len(part.token_ids)

    def _scored(self, start: int, stop: int) -> ScoredTokens | None:
        """Returns the wanted tokens whose logits the positions from `start` to `stop` give."""
        if self._scores_from is None:
            return None
        first = max(self._scores_from, start + 1)
        end = min(self.sampling.prompt_length, stop + 1)
        if first >= end:
            return None
        return ScoredTokens(first - 1 - start, self.tokens[first:end], self.sampling)

    def _page_table(self) -> np.ndarray:
        """Returns the page table, after it has copied what is new of pages that have grown. Slices
        made before keep the table they have."""
        pages = self.held.pages
        if len(self._pages) < len(pages):
            grown = np.array(pages[len(self._pages) :], dtype=np.int32)
            self._pages = np.concatenate((self._pages, grown))
        return self._pages
