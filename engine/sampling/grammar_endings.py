"""`EndingSearch`: looks for a short text with which an answer that follows a grammar could end.

First it goes straight on with what tends to close something, which nearly always ends soon. If that
runs in circles, a search follows for states that allow what none before did. Both are bounded, and
look at few of the bytes that a set of characters allows, so they may miss the shortest text, or
all. But what they find is an end, and they find the same whenever and wherever they look.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from llguidance import LLMatcher, LLTokenizer

FEW = 12
"""So many bytes are all tried."""
MAX_STRAIGHT = 300
"""Bytes that going straight on chooses: some ten milliseconds."""
MAX_STRAIGHT_AFTER = 60
"""The same from each state that the search goes on from."""
MAX_TRIED = 400
"""Continuations that a search tries: some twenty milliseconds."""
CLOSING = b"\"}])>'/,:;.-_"
"""What tends to end something."""
CLOSES = {ord("["): ord("]"), ord("{"): ord("}"), ord("("): ord(")")}
DIGITS = b"0123456789"
KINDS = (DIGITS, bytes(range(97, 123)), bytes(range(65, 91)), bytes(range(128, 256)))
"""Of each of these, the first byte that is allowed stands for all."""
OTHERS = bytes(byte for byte in range(33, 127) if not chr(byte).isalnum() and byte not in CLOSING)
SPACES = bytes([*range(33), 127])
FILLERS = (b"", b"a", b"0", b"A", b" ")
LETTERS = bytes(byte for byte in range(128) if chr(byte).isalpha())
CLOSING_WORDS = [bytes(word) for length in (1, 2, 3) for word in product(b'"}]) >;', repeat=length)]
"""These are tried everywhere: all that `.*` allows before `] }`, say, looks the same."""
OUTLOOK_WORDS = (b'"', b"}", b"]", b")", b'a"', b'0"', b'}"', b"a,", b"0,")


class EndingSearch:
    """Searches with the tokens of one tokenizer. Not thread-safe."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        self._token_of_byte: dict[int, int] = {}
        for token in range(tokenizer.vocab_size):
            if not tokenizer.is_special_token(token):
                text = tokenizer.decode_bytes([token])
                if len(text) == 1:
                    self._token_of_byte.setdefault(text[0], token)

    def find(
        self, matcher: LLMatcher, num_known: int = 0, words: Sequence[bytes] = ()
    ) -> bytes | None:
        """Returns a text after which the grammar may end, a short one; None if none was found. An
        ending of `num_known` bytes was known a while ago: one that is longer still may be found.
        `words`: texts that may have to come before the end, the last one first."""
        text = self._straight(matcher, MAX_STRAIGHT + num_known)
        if text is None:
            text = self._searched(matcher, b"")
        if text is None:
            text = self._spelled(matcher, words)
        return self._searched(matcher, LETTERS) if text is None else text

    def _spelled(self, matcher: LLMatcher, words: Sequence[bytes]) -> bytes | None:
        """Goes through the last word, then the last two, and so on, and from there straight on. A
        word that may not come next is left out. Whether a character has to stand before a word does
        not show where the characters of words may, too: so both are tried."""
        for num_words in range(1, len(words) + 1):
            for fillers in (FILLERS, FILLERS[::-1]):
                state = matcher.deep_copy()
                text = self._consume_and_go_on(state, b"", b"")
                for word in words[num_words - 1 :: -1]:
                    steps = (filler + word for filler in fillers)
                    step = next((step for step in steps if self._may_come(state, step)), b"")
                    text = self._consume_and_go_on(state, text + step, step)
                rest = self._straight(state, MAX_STRAIGHT_AFTER)
                if rest is not None:
                    return text + rest
        return None

    def _may_come(self, state: LLMatcher, text: bytes) -> bool:
        return self._consume(state.deep_copy(), text)

    def _straight(self, matcher: LLMatcher, max_choices: int) -> bytes | None:
        text, state = b"", matcher.deep_copy()
        for _ in range(max_choices):
            if state.is_accepting():
                return text
            step = state.compute_ff_bytes()
            if not step:  # what was opened just now is closed at once
                first = CLOSES.get(text[-1]) if text else None
                step = next(self._choices(state.compute_bitmask(), first), b"")
            if not step or not self._consume(state, step):
                return None
            text += step
        return None

    def _searched(self, matcher: LLMatcher, others: bytes) -> bytes | None:
        """Goes on from every state with an outlook of its own, whichever was found first."""
        seen: set[tuple[bytes, ...]] = set()
        waiting = deque([(b"", matcher.deep_copy())])
        num_tried = 0
        while waiting and num_tried < MAX_TRIED:
            before, state = waiting.popleft()
            for word in CLOSING_WORDS:
                if self._ends_with(state, word):
                    return before + word
            rest = self._straight(state, MAX_STRAIGHT_AFTER)
            if rest is not None:
                return before + rest
            for step in self._choices(state.compute_bitmask(), others=others):
                num_tried += 1
                child = state.deep_copy()
                text = self._consume_and_go_on(child, before + step, step)
                if child.is_accepting():
                    return text
                forced = text[len(before) + 1 :]  # as the rest of a key, which tells it from others
                outlook = (forced, *self._outlook(child))
                if outlook not in seen and not child.is_error():
                    seen.add(outlook)
                    waiting.append((text, child))
        return None

    def _outlook(self, state: LLMatcher) -> tuple[bytes, ...]:
        """Returns what is allowed next, and what is forced behind some words that close something.
        It stands for the state: two that have it in common mostly go on alike."""
        outlook = [state.compute_bitmask()]
        for word in OUTLOOK_WORDS:
            child = state.deep_copy()
            is_allowed = self._consume(child, word)
            outlook.append(child.compute_ff_bytes() if is_allowed else b"")
        return tuple(outlook)

    def _ends_with(self, state: LLMatcher, word: bytes) -> bool:
        child = state.deep_copy()
        return self._consume(child, word) and child.is_accepting()

    def _consume_and_go_on(self, state: LLMatcher, text: bytes, step: bytes) -> bytes:
        """Consumes `step` and all that is forced then; returns `text` with that."""
        self._consume(state, step)
        while not state.is_accepting() and (forced := state.compute_ff_bytes()):
            text += forced
            if not self._consume(state, forced):
                break
        return text

    def tokens_after(self, matcher: LLMatcher, text: bytes) -> list[int] | None:
        """Returns the tokens of `text` if the grammar may end behind them; else None."""
        tokens = list(self.tokenizer.tokenize_bytes(text))
        state = matcher.deep_copy()
        ends = state.try_consume_tokens(tokens) == len(tokens) and state.is_accepting()
        return tokens if ends else None

    def _consume(self, matcher: LLMatcher, text: bytes) -> bool:
        tokens = [self._token_of_byte.get(byte, -1) for byte in text]
        return -1 not in tokens and matcher.try_consume_tokens(tokens) == len(tokens)

    def _choices(
        self, mask: bytes, first: int | None = None, others: bytes = b""
    ) -> Iterator[bytes]:
        """Yields the bytes to try, one by one, in this order; `first` and `others` are first and
        last."""
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        allowed = {byte for byte, token in self._token_of_byte.items() if bits[token]}
        kinds = (next((byte for byte in kind if byte in allowed), None) for kind in KINDS)
        rest = sorted(allowed - set(SPACES)) if len(allowed) <= FEW else [*OTHERS, *DIGITS]
        for byte in dict.fromkeys([first, *CLOSING, *kinds, *rest, *SPACES, *others]):
            if byte is not None and byte in allowed:
                yield bytes([byte])
