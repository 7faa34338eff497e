"""Traces of requests in the format of Mooncake's open release, one JSON object a line:

    {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [block, …]}

A block is 512 tokens, and its id stands for the whole prefix that ends with it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from kvrelay.bench.workloads.dialogue import Dialogue, Passage, UserTurn
from protocol.errors import UserError
from protocol.hashing import PAGE_HASH_BYTES, PageHash

BLOCK_TOKENS = 512


class BadTrace(UserError):
    """A file that is no workload of its kind; the message names the place."""


@dataclass(frozen=True)
class TraceRequest:
    """One request. `hashes`: one for each of its blocks, the last of which need not be full."""

    arrival_s: float
    num_tokens: int
    num_output_tokens: int
    hashes: list[PageHash]


def read_trace(path: Path, speedup: float) -> list[TraceRequest]:
    """Requests by arrival, `speedup` times as fast; those of one timestamp are spread evenly up to
    the next one. Raises BadTrace."""
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line)
            hashes = [int(block).to_bytes(PAGE_HASH_BYTES, "little") for block in row["hash_ids"]]
            num_tokens, num_output_tokens = (
                int(row["input_length"]),
                int(row.get("output_length", 1)),
            )
            rows.append((row["timestamp"] / 1000, num_tokens, num_output_tokens, hashes))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise BadTrace(f"{path}, line {number}: no request of a trace ({error!r})") from error
    if not any(hashes for *_, hashes in rows):
        raise BadTrace(f"{path} has no requests with blocks")
    rows.sort(key=lambda row: row[0])
    return [
        TraceRequest(at / speedup, row[1], row[2], row[3])
        for at, row in zip(_spread([row[0] for row in rows]), rows, strict=True)
    ]


def trace_dialogues(trace: list[TraceRequest], num_output_tokens: int) -> list[Dialogue]:
    """Returns a dialogue of one turn for each request. Requests whose block ids begin alike begin
    with the same tokens, up to the length of the shorter one; those without blocks are left out.
    Answers have `num_output_tokens` tokens, or where that is 0 as many as the trace says."""
    return [
        Dialogue(
            (UserTurn(_passages(one), num_output_tokens or one.num_output_tokens),), one.arrival_s
        )
        for one in trace
        if one.hashes
    ]


def bound(trace: list[TraceRequest]) -> float:
    """Share of blocks that were asked for before: the hits of one infinite cache."""
    seen: set[PageHash] = set()
    num_hits = num_blocks = 0
    for request in trace:
        num_hits += sum(block in seen for block in request.hashes)
        num_blocks += len(request.hashes)
        seen.update(request.hashes)
    return num_hits / num_blocks


def _passages(request: TraceRequest) -> tuple[Passage, ...]:
    """Returns the prompt block by block. Blocks beyond the length are left out, and a length beyond
    the blocks is filled with tokens of the last one."""
    passages = []
    rest = request.num_tokens
    for position, block in enumerate(request.hashes, start=1):
        size = rest if position == len(request.hashes) else min(rest, BLOCK_TOKENS)
        if size > 0:
            passages.append(Passage(block.hex(), size))
        rest -= size
    return tuple(passages)


def _lines(path: Path) -> list[str]:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadTrace(f"cannot read the trace {path} ({error}); check the path") from error


def _spread(times: list[float]) -> list[float]:
    spread: list[float] = []
    start = 0
    step = 1.0
    while start < len(times):
        end = start
        while end < len(times) and times[end] == times[start]:
            end += 1
        if end < len(times):
            step = times[end] - times[start]
        count = end - start
        spread += [times[start] + step * i / count for i in range(count)]
        start = end
    return spread
