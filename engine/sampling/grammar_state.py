"""`GrammarState`: where in its grammar one answer is, and the end that it can still reach.

Everything here is decided by the tokens of the answer and its sampling alone. So a state that is
fed the same tokens at once, after a retry or on another rank, goes on in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import numpy as np
from llguidance import LLMatcher

from engine.errors import RequestFailed
from engine.sampling.grammar_endings import EndingSearch
from engine.sampling.grammar_words import last_words
from protocol.model.grammars import reason_of
from protocol.sampling import Sampling

MIN_WATCHED = 49
"""When no more tokens are left than so many and those of an ending, every token is watched: it must
leave an end within reach. That is 3 tokens for each between two looks, and one for the end."""
LOOK_INTERVAL = 16
"""Before that an ending is looked for now and then, after so many tokens at least, to see how long
it is."""
MAX_GROWTH = 7
"""While many tokens are left, the next look comes before an ending that grows by so many tokens,
with each token of the answer, would be too long. Near the end `MIN_WATCHED` covers a growth of 3.
"""
FREE_SHARE = 7 / 8
"""Where more of the vocabulary than this is allowed, a text is free."""
NEVER = 1 << 31
MAX_SKIPPED = 16
"""Bytes of an ending that may have been said already, in other tokens."""
SEARCH_INTERVAL = 16
"""Tokens between two searches for an ending, if the first of them found none."""


def tokens_until_look(num_spare: int) -> int:
    """Returns after how many tokens an ending is looked for again. `num_spare`: the tokens that are
    left before every token is watched."""
    return max(LOOK_INTERVAL, num_spare // (MAX_GROWTH + 1))


class GrammarState:
    """Fed the tokens of one answer, in order."""

    def __init__(
        self,
        matcher: LLMatcher,
        sampling: Sampling,
        endings: EndingSearch,
        num_at_least: int | None,
    ) -> None:
        """`matcher` is at the beginning, and this object's own from now on. `num_at_least`: the
        tokens that an ending takes from there; None: none was found, so it is not worth its time to
        look for one before the end is near."""
        self.matcher = matcher
        self.tokens: list[int] = []
        self._beginning = matcher.deep_copy()
        self._sampling = sampling
        self._endings = endings
        self._first_look = NEVER if num_at_least is None or not sampling.max_new_tokens else 0
        self._num_watched_at_least = MIN_WATCHED + (num_at_least or 0)
        self._num_watched = self._num_watched_at_least
        self._is_over = False
        self._ending: list[int] | None = None
        """Tokens with which the answer could end, as far as is known."""
        self._search_from = 0
        """From so many tokens on an ending is searched for."""
        self._num_at_last_look = 0
        self._look_from = self._first_look
        """From so many tokens on the next look is due."""
        self._start()

    @property
    def num_left(self) -> int:
        """Tokens that the answer may still have; many if that is not known."""
        most = self._sampling.max_new_tokens
        return most - len(self.tokens) if most else NEVER

    @property
    def may_end(self) -> bool:
        return self._is_over or self.matcher.is_accepting()

    @property
    def may_replace(self) -> bool:
        """`settle` may return another token than the one it is given."""
        return self.num_left <= self._num_watched

    def feed(self, begin: int, tokens: Sequence[int]) -> None:
        """Takes `tokens`, of which the first is number `begin` of the answer. Those that it has had
        it skips; if it has others, or more behind them, it goes back: a step that was started ahead
        was in vain, or is computed again. Raises RequestFailed."""
        assert begin <= len(self.tokens), "tokens of the answer were left out"
        had = self.tokens[begin:]
        if len(had) > len(tokens) or had != list(tokens[: len(had)]):
            self._go_back(begin)
            had = []
        self._look_if_due()  # behind the token that `settle` took
        for token in tokens[len(had) :]:
            self._add(token)
            self._look_if_due()

    def settle(self, position: int, token: int, may_go_on: bool) -> tuple[int, ...]:
        """Takes the token that was sampled as number `position` of the answer; returns it, and if
        `may_go_on` what is forced behind it. But if no end would be reached any more after it, it
        is not taken, and the ending is returned in its place."""
        if position != len(self.tokens):
            return (token,)  # of a step that was started ahead in vain; nobody wants it
        before = self.matcher.deep_copy() if self.may_replace else None
        ending, spare, search_from = self._ending, self._num_spare, self._search_from
        self._add(token)
        is_lost = spare >= 0 and self._num_spare < min(spare, 1)
        if is_lost and before is not None and ending is not None:
            if not ending and self.may_end and self._is_free(before):
                return (token,)  # text that is cut is told as such, and not by an end token
            self.tokens.pop()
            self.matcher, self._ending = before, ending
            self._search_from = search_from
            return (*ending, *self._sampling.end_token_ids[: min(spare, 1)])
        if self._is_over or not may_go_on:
            return (token,)
        forced = self.matcher.compute_ff_tokens()
        if self.may_replace and self._ending is not None:
            # Others, of the same text, might be more than there is room for.
            pairs = zip(forced, self._ending, strict=False)
            forced = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        return (token, *forced)

    def _is_free(self, matcher: LLMatcher) -> bool:
        """Nearly any token may come next: text of which the grammar cannot tell the end."""
        allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8))
        return int(allowed.sum()) > self._endings.tokenizer.vocab_size * FREE_SHARE

    @property
    def _num_spare(self) -> int:
        """Tokens that are left behind the ending, where an end token should have room; -1 for
        an answer that no known ending fits into."""
        if self._is_over or not self.may_replace:
            return 1
        return -1 if self._ending is None else max(-1, self.num_left - len(self._ending))

    def _go_back(self, num_tokens: int) -> None:
        """Keeps the first `num_tokens` tokens."""
        kept, num_dropped = self.tokens[:num_tokens], len(self.tokens) - num_tokens
        was_looked_at = self.may_replace or self._num_at_last_look > num_tokens
        if not self._is_over and not was_looked_at and self.matcher.rollback(num_dropped):
            self.tokens = kept
            return
        self.matcher = self._beginning.deep_copy()
        self.tokens = []
        self._is_over = False
        self._ending = None
        self._search_from = 0
        self._num_watched = self._num_watched_at_least
        self._num_at_last_look = 0
        self._look_from = self._first_look
        self._start()
        for token in kept:
            self._add(token)
            self._look_if_due()

    def _start(self) -> None:
        if self.may_replace:
            self._look()
        self._look_if_due()

    def _add(self, token: int) -> None:
        # What a step that was started ahead is fed behind the end does not matter any more.
        self._is_over = self._is_over or token in self._sampling.end_token_ids
        self.tokens.append(token)
        if self._is_over:
            return
        if not self.matcher.consume_token(token):
            raise RequestFailed(
                f"the grammar cannot be followed any further: {reason_of(self.matcher)}"
            )
        if self.may_replace:
            self._look()

    def _look_if_due(self) -> None:
        """Looks for an ending now and then while many tokens are left. `settle` leaves this to the
        next `feed`: a step waits for `settle`, while `feed` runs beside a forward pass. The look
        still comes before the next token, so the two orders decide alike."""
        if len(self.tokens) < self._look_from or self._is_over or self.may_replace:
            return
        self._look()
        if self._ending is not None:
            needed = MIN_WATCHED + len(self._ending)
            self._num_watched = max(needed, self._num_watched_at_least)
        num_spare = 0 if self._ending is None else self.num_left - self._num_watched
        self._look_from = len(self.tokens) + tokens_until_look(num_spare)

    def _look(self) -> None:
        self._ending = self._next_ending()
        self._num_at_last_look = len(self.tokens)

    def _next_ending(self) -> list[int] | None:
        """Returns the rest of the ending that it had, or that or an end of it, if one of these
        still is one; else what a search finds."""
        had, newest = self._ending, self.tokens[-1:]
        if self.matcher.is_accepting():
            return []
        if self.may_replace and had and had[:1] == newest:
            return had[1:]
        texts = self._ends_of(self._endings.tokenizer.decode_bytes(had or []), newest)
        endings = (self._endings.tokens_after(self.matcher, text) for text in texts)
        return next((ending for ending in endings if ending is not None), None)

    def _ends_of(self, text: bytes, newest: list[int]) -> Iterator[bytes]:
        """Yields ends of `text` that might go on where `newest` has led; last, what is found."""
        done = self._endings.tokenizer.decode_bytes(newest)
        begin = len(done) if text.startswith(done) else 0
        for i in range(begin, min(len(text), begin + MAX_SKIPPED)):
            yield text[i:]
        if len(self.tokens) < self._search_from:
            return
        words = last_words(self._sampling.grammar)
        found = self._endings.find(self.matcher, len(text), words)
        if found is not None:
            yield found
        else:
            self._search_from = len(self.tokens) + SEARCH_INTERVAL
