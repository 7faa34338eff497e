"""Page hashes: the names by which all nodes know the content of a page. Pure.

The hash of page i covers the namespace and every token up to the end of that page, chained:

    h[-1] = blake2b_16(namespace parts)      h[i] = blake2b_16(h[i-1] || int32_le(tokens of page i))

So equal hashes mean equal prefixes (two different ones collide only among some 2^64 pages), and a
run of hashes is a path in a radix tree. The namespace parts keep apart what must never be shared:
other weights, another KV layout, another `Namespace` of the request.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b

from protocol.layout import KVLayout
from protocol.namespace import SHARED, Namespace

PAGE_HASH_BYTES = 16
PageHash = bytes


def chain_start(model_fingerprint: str, layout: KVLayout, namespace: Namespace = SHARED) -> bytes:
    """Returns the 16 bytes with which the chain of a prompt begins, h[-1] above."""
    digest = blake2b(digest_size=PAGE_HASH_BYTES, person=b"kvrelay-ns")
    for part in (model_fingerprint, layout.describe(), namespace.salt, namespace.adapter):
        raw = part.encode()
        # With its length before each part, no two different lists of parts are the same bytes.
        digest.update(struct.pack("<I", len(raw)))
        digest.update(raw)
    return digest.digest()


TOKEN_BYTES = 4
"""The bytes of one token id in hashes and messages."""


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Returns token ids as little-endian int32, the form they have in hashes and messages."""
    return struct.pack(f"<{len(tokens)}i", *tokens)


def tokens_from_bytes(raw: bytes) -> list[int]:
    """Returns the token ids of which `token_bytes` made `raw`."""
    packed = array("i")
    packed.frombytes(raw)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


def page_hashes(tokens: Sequence[int], page_size: int, start: bytes) -> list[PageHash]:
    """Returns the hash of each full page of `tokens`; a last page that is not full has none.

    `start` is what the first page is chained to: a `chain_start`, or the hash of the page before.
    """
    full_pages = len(tokens) // page_size
    raw = token_bytes(tokens)
    page_bytes = page_size * 4
    hashes: list[PageHash] = []
    previous = start
    for offset in range(0, full_pages * page_bytes, page_bytes):
        chunk = raw[offset : offset + page_bytes]
        previous = blake2b(previous + chunk, digest_size=PAGE_HASH_BYTES).digest()
        hashes.append(previous)
    return hashes


def join_hashes(hashes: Sequence[PageHash]) -> bytes:
    """Returns the hashes one after the other, the form they have in messages and in Redis."""
    return b"".join(hashes)


def split_hashes(blob: bytes) -> list[PageHash]:
    """Returns the hashes of which `join_hashes` made `blob`. Raises ValueError if it is no whole
    number of hashes."""
    if len(blob) % PAGE_HASH_BYTES:
        raise ValueError(f"{len(blob)} bytes are no whole number of {PAGE_HASH_BYTES}-byte hashes")
    return [blob[i : i + PAGE_HASH_BYTES] for i in range(0, len(blob), PAGE_HASH_BYTES)]


class PageHasher:
    """Makes the page hashes of one model and layout. Every process that has both makes the same."""

    def __init__(self, model_fingerprint: str, layout: KVLayout) -> None:
        self._model_fingerprint = model_fingerprint
        self._layout = layout
        self.page_size = layout.page_size
        self._shared_start = chain_start(model_fingerprint, layout)
        """Where the chains of nearly all prompts begin."""

    def hashes(
        self,
        tokens: Sequence[int],
        namespace: Namespace = SHARED,
        known: Sequence[PageHash] = (),
    ) -> list[PageHash]:
        """Returns one hash per full page of `tokens`.

        `known` are the hashes of the first pages if they were computed before; the others are
        chained to the last of them.
        """
        if not known:
            return page_hashes(tokens, self.page_size, self._start_of(namespace))
        start = known[-1]
        rest = page_hashes(tokens[len(known) * self.page_size :], self.page_size, start)
        return [*known, *rest]

    def _start_of(self, namespace: Namespace) -> bytes:
        if namespace == SHARED:
            return self._shared_start
        return chain_start(self._model_fingerprint, self._layout, namespace)

    def num_pages(self, num_tokens: int) -> int:
        """Returns how many pages `num_tokens` tokens need; the last one may not be full."""
        return self._layout.num_pages(num_tokens)

    def reusable(self, hashes: Sequence[PageHash], num_tokens: int) -> Sequence[PageHash]:
        """Returns those of a prompt's `hashes` whose pages it may take from a cache.

        The page that holds its last token is never taken: that token must be computed, as its
        logits choose the first token of the answer. `num_tokens` is the length of the prompt.
        """
        return hashes[: max(0, num_tokens - 1) // self.page_size]
