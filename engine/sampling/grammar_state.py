"""`GrammarState`: where in its grammar one answer is, and the end that it can still reach.

Everything here is decided by the tokens of the answer and its sampling alone. So a state that is
fed the same tokens at once, after a retry or on another rank, goes on in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

from llguidance import LLMatcher

from engine.errors import RequestFailed
from engine.sampling.grammar_endings import EndingSearch
from protocol.sampling import Sampling

MIN_WATCHED = 32
"""When so few tokens are left, an answer is led to its end, if need be; and earlier, if the ending
of an empty answer is long."""


class GrammarState:
    """Fed the tokens of one answer, in order."""

    def __init__(
        self, matcher: LLMatcher, sampling: Sampling, endings: EndingSearch, num_at_least: int
    ) -> None:
        """`matcher` is at the beginning, and this object's own from now on. `num_at_least`: the
        tokens that an ending takes from there."""
        self.matcher = matcher
        self.tokens: list[int] = []
        self._beginning = matcher.deep_copy()
        self._sampling = sampling
        self._endings = endings
        self._num_watched = MIN_WATCHED + 2 * num_at_least
        self._is_over = False
        self._ending: bytes | None = None
        """A text with which the answer could end, once it is watched."""
        self._ending_tokens: list[int] | None = None
        self._watch()

    @property
    def num_left(self) -> int:
        """Tokens that the answer may still have; many if that is not known."""
        most = self._sampling.max_new_tokens
        return most - len(self.tokens) if most else 1 << 31

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
        for token in tokens[len(had) :]:
            self._add(token)

    def settle(self, position: int, token: int, may_go_on: bool) -> tuple[int, ...]:
        """Takes the token that was sampled as number `position` of the answer; returns it, and if
        `may_go_on` what is forced behind it. But if no end would be reached any more after it, it
        is not taken, and the ending is returned in its place."""
        if position != len(self.tokens):
            return (token,)  # of a step that was started ahead in vain; nobody wants it
        ending, spare = self._ending_tokens, self._num_spare
        before = self.matcher.deep_copy(), self._ending
        self._add(token)
        if ending is not None and spare >= 0 and self._num_spare < min(spare, 1):
            self.tokens.pop()
            (self.matcher, self._ending), self._ending_tokens = before, ending
            return (*ending, *self._sampling.end_token_ids[: min(spare, 1)])
        if self._is_over or not may_go_on:
            return (token,)
        return (token, *self.matcher.compute_ff_tokens())

    @property
    def _num_spare(self) -> int:
        """Tokens that are left behind the ending, where an end token should have room; -1 for
        an answer that no known ending fits into."""
        if self._is_over or not self.may_replace:
            return 1
        ending = self._ending_tokens
        return -1 if ending is None else max(-1, self.num_left - len(ending))

    def _go_back(self, num_tokens: int) -> None:
        """Keeps the first `num_tokens` tokens."""
        kept, num_dropped = self.tokens[:num_tokens], len(self.tokens) - num_tokens
        if not self._is_over and not self.may_replace and self.matcher.rollback(num_dropped):
            self.tokens = kept
            return
        self.matcher = self._beginning.deep_copy()
        self.tokens = []
        self._is_over = False
        self._ending = self._ending_tokens = None
        self._watch()
        for token in kept:
            self._add(token)

    def _add(self, token: int) -> None:
        # What a step that was started ahead is fed behind the end does not matter any more.
        self._is_over = self._is_over or token in self._sampling.end_token_ids
        self.tokens.append(token)
        if self._is_over:
            return
        if not self.matcher.consume_token(token):
            raise RequestFailed(
                f"the grammar cannot be followed any further: {self.matcher.get_error()[:200]}"
            )
        self._watch()

    def _watch(self) -> None:
        """Keeps an ending while few tokens are left: the rest of the one that it had, that one, or
        its end, if one of these still is one; else it looks for another."""
        if self.num_left > self._num_watched or self._is_over:
            return
        for text in self._rests():
            tokens = self._endings.tokens_after(self.matcher, text)
            if tokens is not None:
                self._ending, self._ending_tokens = text, tokens
                return
        found = self._endings.find(self.matcher)
        tokens = None if found is None else self._endings.tokens_after(self.matcher, found)
        self._ending, self._ending_tokens = found, tokens

    def _rests(self) -> Sequence[bytes]:
        if self.matcher.is_accepting():
            return [b""]
        if self._ending is None:
            return []
        newest = self._endings.tokenizer.decode_bytes(self.tokens[-1:]) if self.tokens else b""
        is_followed = bool(newest) and self._ending.startswith(newest)
        first = len(newest) if is_followed else 0
        return [self._ending[i:] for i in range(first, min(len(self._ending), first + 16))]
