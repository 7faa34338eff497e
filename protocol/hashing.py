"""Page hashes: the only cache key that nodes share. Pure.

`PageHash` i covers the namespace and every token up to the end of full page i, chained:

    h[-1] = blake2b_16(namespace parts)      h[i] = blake2b_16(h[i-1] || int32_le(tokens of page i))

so equal hashes mean equal prefixes (up to a 2^-64 birthday bound), and a run of hashes is a path
in a radix tree. The namespace keeps apart what must never be shared: other weights, another KV
layout, another `Namespace` of the request.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from hashlib import blake2b

from protocol.layout import KVLayout
from protocol.namespace import SHARED, Namespace

PAGE_HASH_BYTES = 16
PageHash = bytes


def chain_start(model_fingerprint: str, layout: KVLayout, namespace: Namespace = SHARED) -> bytes:
    """16 bytes that begin every chain; length-prefixed parts, so no two inputs collide."""
    digest = blake2b(digest_size=PAGE_HASH_BYTES, person=b"kvrelay-ns")
    for part in (model_fingerprint, layout.describe(), namespace.salt, namespace.adapter):
        raw = part.encode()
        digest.update(struct.pack("<I", len(raw)))
        digest.update(raw)
    return digest.digest()


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Token ids as little-endian int32, the form they have in hashes and on the wire."""
    packed = array("i", tokens)
    if struct.pack("=I", 1) != struct.pack("<I", 1):
        packed.byteswap()
    return packed.tobytes()


def tokens_from_bytes(raw: bytes) -> list[int]:
    """Inverse of `token_bytes`."""
    packed = array("i")
    packed.frombytes(raw)
    if struct.pack("=I", 1) != struct.pack("<I", 1):
        packed.byteswap()
    return packed.tolist()


def page_hashes(tokens: Sequence[int], page_size: int, start: bytes) -> list[PageHash]:
    """Hashes of the full pages of `tokens`, chained from `start` (a `chain_start` or a page hash).

    A last page that is not full has no hash.
    """
    full_pages = len(tokens) // page_size
    raw = token_bytes(tokens[: full_pages * page_size])
    page_bytes = page_size * 4
    hashes: list[PageHash] = []
    previous = start
    for offset in range(0, len(raw), page_bytes):
        chunk = raw[offset : offset + page_bytes]
        previous = blake2b(previous + chunk, digest_size=PAGE_HASH_BYTES).digest()
        hashes.append(previous)
    return hashes


def join_hashes(hashes: Sequence[PageHash]) -> bytes:
    return b"".join(hashes)


def split_hashes(blob: bytes) -> list[PageHash]:
    """Inverse of `join_hashes`; raises ValueError on a blob of another length."""
    if len(blob) % PAGE_HASH_BYTES:
        raise ValueError(f"{len(blob)} bytes are no whole number of {PAGE_HASH_BYTES}-byte hashes")
    return [blob[i : i + PAGE_HASH_BYTES] for i in range(0, len(blob), PAGE_HASH_BYTES)]


class PageHasher:
    """Page hashes of one model and layout; every process that has both gets the same ones."""

    def __init__(self, model_fingerprint: str, layout: KVLayout) -> None:
        self._model_fingerprint = model_fingerprint
        self._layout = layout
        self.page_size = layout.page_size

    def hashes(
        self,
        tokens: Sequence[int],
        namespace: Namespace = SHARED,
        known: Sequence[PageHash] = (),
    ) -> list[PageHash]:
        """Returns one hash per full page of `tokens`.

        `known` are those of its first pages, computed before: hashing goes on behind them.
        """
        start = known[-1] if known else self._start_of(namespace)
        rest = page_hashes(tokens[len(known) * self.page_size :], self.page_size, start)
        return [*known, *rest]

    def _start_of(self, namespace: Namespace) -> bytes:
        return chain_start(self._model_fingerprint, self._layout, namespace)

    def num_pages(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens, the last one possibly in part."""
        return self._layout.num_pages(num_tokens)

    def reusable(self, hashes: Sequence[PageHash], num_tokens: int) -> Sequence[PageHash]:
        """The hashes a prompt may hit: never that of its last token, whose logits are needed."""
        return hashes[: max(0, num_tokens - 1) // self.page_size]
