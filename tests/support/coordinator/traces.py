"""Traces of requests as strings: a letter is a block."""

from __future__ import annotations

from kvrelay.bench.workloads.trace import BLOCK_TOKENS, TraceRequest
from protocol.hashing import PAGE_HASH_BYTES, PageHash

BASE_S = 0.005


def chain(path: str) -> list[PageHash]:
    """One block for every letter; equal beginnings are equal blocks."""
    return [path[: i + 1].encode().rjust(PAGE_HASH_BYTES) for i in range(len(path))]


def request(at: float, path: str) -> TraceRequest:
    return TraceRequest(at, len(path) * BLOCK_TOKENS, 1, chain(path))
