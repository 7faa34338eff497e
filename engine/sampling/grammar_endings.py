"""`EndingSearch`: looks for a short text with which an answer that follows a grammar could end.

A search over bytes on copies of a matcher, shortest texts first. It is bounded, and looks at few of
the bytes that a set of characters allows, so it may miss the shortest text, or all. But what it
finds is an end, and it finds the same whenever and wherever it looks.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from llguidance import LLMatcher, LLTokenizer

MAX_LOOKED_AT = 400
"""States of the matcher that one search looks at: some ten milliseconds."""
MAX_PER_LENGTH = 16
"""States that are followed of all those that texts of one length lead to."""
MAX_BYTES = 4000
FEW = 12
"""So many bytes are all tried."""
CLOSING = b'"}])>\'/,:;.-_ \n'
"""What tends to end something."""
KINDS = (b"0123456789", bytes(range(97, 123)), bytes(range(65, 91)), bytes(range(128, 256)))
"""Of each of these, the first byte that is allowed stands for all."""


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

    def shortest(self, matcher: LLMatcher) -> bytes | None:
        """Returns a text after which the grammar may end, a short one; None if none was found."""
        count = 0
        waiting = [(0, count, b"", matcher.deep_copy())]
        seen: dict[int, set[bytes]] = {}
        for _ in range(MAX_LOOKED_AT):
            if not waiting:
                return None
            length, _, text, state = heapq.heappop(waiting)
            if state.is_accepting():
                return text
            mask = state.compute_bitmask()
            others = seen.setdefault(length, set())
            if state.is_error() or mask in others or len(others) >= MAX_PER_LENGTH:
                continue  # another text of this length allows the same
            others.add(mask)
            forced = state.compute_ff_bytes()
            steps = [forced] if forced else (bytes([byte]) for byte in self._choices(mask))
            for step in steps:
                child = state.deep_copy()
                if length < MAX_BYTES and self._consume(child, step):
                    count += 1
                    heapq.heappush(waiting, (length + len(step), count, text + step, child))
        return None

    def tokens_after(self, matcher: LLMatcher, text: bytes) -> list[int] | None:
        """Returns the tokens of `text` if the grammar may end behind them; else None."""
        tokens = list(self.tokenizer.tokenize_bytes(text))
        state = matcher.deep_copy()
        ends = state.try_consume_tokens(tokens) == len(tokens) and state.is_accepting()
        return tokens if ends else None

    def _consume(self, matcher: LLMatcher, text: bytes) -> bool:
        tokens = [self._token_of_byte.get(byte, -1) for byte in text]
        return -1 not in tokens and matcher.try_consume_tokens(tokens) == len(tokens)

    def _choices(self, mask: bytes) -> Iterator[int]:
        """Yields the bytes to try, in this order."""
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        allowed = [byte for byte, token in self._token_of_byte.items() if bits[token]]
        first = [byte for byte in CLOSING if byte in allowed]
        if len(allowed) > FEW:
            kinds = (next((byte for byte in kind if byte in allowed), None) for kind in KINDS)
            others = [byte for byte in kinds if byte is not None]
            allowed = [*others, *allowed[: FEW - len(others)]]
        yield from dict.fromkeys([*first, *allowed])
