"""Which of the pages that follow one prefix begins most like some tokens. Pure.

Pages are kept in the order of their tokens: a sorted list of (key, hash). What has the longest
common beginning with some key then lies right before or behind the place where that key belongs, so
it is found in O(log pages), however many follow. A key may be shorter than a page: the tokens of a
page that was never filled.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence

from protocol.hashing import PageHash

TOKEN_BYTES = 4

Beginnings = list[tuple[bytes, PageHash]]
"""The pages that follow one prefix, sorted."""


def key_of(tokens: Sequence[int]) -> bytes:
    """Returns token ids as bytes that are ordered as the tokens are."""
    packed = array("i", tokens)
    if sys.byteorder == "little":
        packed.byteswap()
    return packed.tobytes()


def add(beginnings: Beginnings, key: bytes, page_hash: PageHash) -> None:
    """Adds a page. Its hash must not be there yet."""
    insort(beginnings, (key, page_hash))


def remove(beginnings: Beginnings, key: bytes, page_hash: PageHash) -> None:
    """Removes a page that is there."""
    place = bisect_left(beginnings, (key, page_hash))
    assert beginnings[place] == (key, page_hash)
    del beginnings[place]


def closest(beginnings: Beginnings, key: bytes) -> tuple[PageHash, int] | None:
    """Returns the page with the longest common beginning with `key`, and the length of that in
    tokens; None if there are no pages."""
    place = bisect_left(beginnings, (key, b""))
    neighbours = beginnings[max(0, place - 1) : place + 1]
    found = [(common_length(key, other), page_hash) for other, page_hash in neighbours]
    if not found:
        return None
    length, page_hash = max(found)
    return page_hash, length


def common_length(one: bytes, other: bytes) -> int:
    """Returns with how many equal tokens two keys begin."""
    num_bytes = min(len(one), len(other))
    different = int.from_bytes(one[:num_bytes], "big") ^ int.from_bytes(other[:num_bytes], "big")
    num_different_bytes = (different.bit_length() + 7) // 8  # from the first difference to the end
    return (num_bytes - num_different_bytes) // TOKEN_BYTES
