"""`Grammars`: the states of a runner's sequences that follow grammars, and the masks of a step.

What the host knows of the tokens before a step is fed to the states, and the masks are computed, on
a thread beside the forward pass. A row that follows a token which the device still computes has its
mask computed when that token has come: only the sampling of such a step waits for it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from ctypes import CDLL

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask_par

from engine.batches.sequence import Sampled, Slice
from engine.errors import RequestFailed
from engine.sampling.grammar_endings import EndingSearch
from engine.sampling.grammar_masks import TokenMasks
from engine.sampling.grammar_state import GrammarState
from engine.sampling.grammar_words import last_words
from engine.sampling.logprobs import LEAST
from protocol.model.grammars import grammar_tokenizer, open_matcher, reason_of
from protocol.sampling import Sampling, TokenLogprobs

MAX_COMPILED = 64
"""Grammars that stay compiled when no sequence follows them."""
MAX_THREADS = 4
"""Threads that compute masks side by side; one core is left to what they are beside."""


class Grammars:
    """States by the id of their sequence. `begin`, then `GrammarStep.finish`, then `settle`. Not
    thread-safe: who settles an earlier step between the first two calls `GrammarStep.wait` before,
    since the thread may be feeding a state of that step."""

    def __init__(
        self,
        read_tokenizer: Callable[[], str],
        vocab_size: int = 0,
        library: CDLL | None = None,
    ) -> None:
        """`read_tokenizer` returns the model's tokenizer.json; it is called at once, on a thread,
        and its failure fails the requests that have a grammar. `vocab_size` is the model's, which
        may be larger than the tokenizer's: a client may name any of its tokens as an end. `library`
        has the native kernels, which apply masks on a CPU."""
        self.library = library
        self._vocab_size = vocab_size
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._tokenizer = self._thread.submit(lambda: _load(read_tokenizer))
        self._executor = LLExecutor(max(1, min(MAX_THREADS, (os.cpu_count() or 1) - 1)))
        self._compiled: OrderedDict[str, tuple[LLMatcher, int | None]] = OrderedDict()
        """By grammar: a matcher at the beginning, and how many tokens an ending takes there, if one
        was found."""
        self._states: dict[int, GrammarState] = {}

    def __len__(self) -> int:
        return len(self._states)

    def begin(self, slices: Sequence[Slice]) -> GrammarStep | None:
        """Starts with the masks of a step whose sampling slices these are; None: it needs none."""
        rows = [
            (row, part)
            for row, part in enumerate(slices)
            if part.sampling is not None and part.sampling.grammar
        ]
        return GrammarStep(self, rows) if rows else None

    def end(self, sequence_id: int) -> None:
        """Forgets a sequence. Does nothing if it has no state."""
        self._states.pop(sequence_id, None)

    def may_replace(self, part: Slice) -> bool:
        """`settle` may return other tokens than what was sampled for this slice."""
        state = self._states.get(part.sequence_id)
        return state is not None and state.may_replace

    def settle(self, part: Slice, sampled: Sampled) -> Sampled:
        """Returns the tokens that follow `part`, of which the first was sampled."""
        state, sampling = self._states.get(part.sequence_id), part.sampling
        if state is None or sampling is None:
            return sampled
        (token,) = sampled.tokens
        position = part.end - sampling.prompt_length
        tokens = state.settle(position, token, may_go_on=not sampling.wants_logprobs)
        if tokens == sampled.tokens:
            return sampled
        if not sampling.wants_logprobs:
            return Sampled(tokens)
        return Sampled(tokens, tuple(_certain(token, sampling) for token in tokens))

    def submit(self, rows: Sequence[tuple[int, Slice]]) -> Future[np.ndarray]:
        """Feeds these slices and computes their masks, on the thread."""
        return self._thread.submit(lambda: self.masks([(part, part.token_ids) for _, part in rows]))

    def masks(self, fed: Sequence[tuple[Slice, Sequence[int]]]) -> np.ndarray:
        """Feeds each slice its tokens and returns the masks, [rows, words] uint32. Raises
        RequestFailed."""
        states = [self._fed(part, tokens) for part, tokens in fed]
        tokenizer, _ = self._tools()
        bits = np.empty((len(fed), -(-tokenizer.vocab_size // 32)), dtype=np.int32)
        matchers = [(state.matcher, row) for row, state in enumerate(states)]
        fill_next_token_bitmask_par(self._executor, matchers, bits)
        masks = _widened(bits.view(np.uint32), self._vocab_size)
        for row, (state, (part, _)) in enumerate(zip(states, fed, strict=True)):
            if state.matcher.is_error():
                raise RequestFailed(
                    f"the grammar takes too much to follow: {reason_of(state.matcher)}"
                )
            assert part.sampling is not None
            mask = memoryview(masks[row])  # its words are quicker to change than numpy's
            _clear(mask, tokenizer.eos_token)
            _allow_ends(mask, state, part.sampling)
        return masks

    def _fed(self, part: Slice, tokens: Sequence[int]) -> GrammarState:
        assert part.sampling is not None
        state = self._states.get(part.sequence_id)
        if state is None:
            state = self._states[part.sequence_id] = self._open(part.sampling)
        begin = part.start - len(part.replay) - part.sampling.prompt_length
        state.feed(max(0, begin), [*part.replay, *tokens][max(0, -begin) :])
        return state

    def _open(self, sampling: Sampling) -> GrammarState:
        tokenizer, endings = self._tools()
        if sampling.grammar not in self._compiled:
            matcher = open_matcher(tokenizer, sampling.grammar)
            if matcher.is_error():
                raise RequestFailed(f"the grammar is no good: {reason_of(matcher)}")
            ending = endings.find(matcher, words=last_words(sampling.grammar))
            tokens = None if ending is None else endings.tokens_after(matcher, ending)
            self._compiled[sampling.grammar] = matcher, None if tokens is None else len(tokens)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(sampling.grammar)
        matcher, num_at_least = self._compiled[sampling.grammar]
        return GrammarState(matcher.deep_copy(), sampling, endings, num_at_least)

    def _tools(self) -> tuple[LLTokenizer, EndingSearch]:
        try:
            return self._tokenizer.result()
        except (OSError, ValueError, KeyError) as error:
            raise RequestFailed(f"grammars need the model's tokenizer.json: {error}") from None


class GrammarStep:
    """The masks of one step, while they are being computed."""

    def __init__(self, grammars: Grammars, rows: Sequence[tuple[int, Slice]]) -> None:
        """`rows`: the slices with grammars, and their rows among those that sample."""
        self._grammars = grammars
        self._known = [(row, part) for row, part in rows if part.follows is None]
        self._following = [(row, part) for row, part in rows if part.follows is not None]
        self._future = grammars.submit(self._known) if self._known else None

    @property
    def follows_replaceable(self) -> bool:
        """A token that the device has sampled for the step before may be replaced."""
        return any(self._grammars.may_replace(part) for _, part in self._following)

    @property
    def follows(self) -> bool:
        """It needs tokens of the step before."""
        return bool(self._following)

    def wait(self) -> None:
        """Waits until the thread has done with the states."""
        if self._future is not None:
            self._future.exception()

    def finish(self, before: Sequence[Sampled | None]) -> TokenMasks:
        """Waits for the masks. `before`: what the step before has sampled for each of its slices,
        if this one follows it. Raises RequestFailed."""
        parts = [] if self._future is None else [self._future.result()]
        if self._following:
            fed = [(part, _first(before, part)) for _, part in self._following]
            parts.append(self._grammars.masks(fed))
        rows = [row for row, _ in (*self._known, *self._following)]
        if len(parts) == 1:
            return TokenMasks(rows, parts[0], self._grammars.library)
        order = np.argsort(rows)
        bits = np.concatenate(parts)[order]
        return TokenMasks([rows[i] for i in order], bits, self._grammars.library)


def _load(read_tokenizer: Callable[[], str]) -> tuple[LLTokenizer, EndingSearch]:
    tokenizer = grammar_tokenizer(read_tokenizer())
    return tokenizer, EndingSearch(tokenizer)


def _first(before: Sequence[Sampled | None], part: Slice) -> Sequence[int]:
    """Returns the token that `part` follows; none where there were no numbers to choose by, since
    then nobody wants what this slice samples."""
    assert part.follows is not None
    sampled = before[part.follows]
    assert sampled is not None, "it follows what samples nothing"
    return sampled.tokens[:1]


def _widened(masks: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns `masks` [rows, words] with words for `vocab_size` tokens at least."""
    num_lacking = max(0, -(-vocab_size // 32) - masks.shape[1])
    return np.pad(masks, ((0, 0), (0, num_lacking))) if num_lacking else masks


def _allow_ends(mask: memoryview, state: GrammarState, sampling: Sampling) -> None:
    """Allows the end tokens where the answer may end, and forbids them elsewhere, or before it has
    `min_new_tokens`; but never all that the grammar allows."""
    ends = sampling.end_token_ids
    if state.may_end:
        is_early = len(state.tokens) < sampling.min_new_tokens
        if not (is_early and _has_others(mask, ends)):
            for token in ends:
                mask[token >> 5] |= 1 << (token & 31)
            return
    elif any(_has(mask, token) for token in ends) and not _has_others(mask, ends):
        return
    for token in ends:
        _clear(mask, token)
    if not _allows_any(mask):
        raise RequestFailed("the grammar allows none of the model's tokens to go on with")


def _has(mask: memoryview, token: int) -> bool:
    word = token >> 5
    return word < len(mask) and bool(mask[word] >> (token & 31) & 1)


def _clear(mask: memoryview, token: int) -> None:
    if token >> 5 < len(mask):
        mask[token >> 5] &= ~(1 << (token & 31))


def _has_others(mask: memoryview, tokens: Sequence[int]) -> bool:
    known = [token for token in tokens if _has(mask, token)]
    for token in known:
        _clear(mask, token)
    has_others = _allows_any(mask)
    for token in known:
        mask[token >> 5] |= 1 << (token & 31)
    return has_others


def _allows_any(mask: memoryview) -> bool:
    return mask.tobytes() != bytes(mask.nbytes)  # several times as quick as numpy is


def _certain(token: int, sampling: Sampling) -> TokenLogprobs:
    """Returns the logprobs where only one token is allowed."""
    top = [(token, 0.0)][: sampling.num_top_logprobs]
    wanted = [0.0 if other == token else LEAST for other in sampling.logprob_token_ids]
    return TokenLogprobs(0.0, top, wanted)
