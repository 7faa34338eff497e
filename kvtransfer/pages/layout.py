"""Which bytes go where: KV heads over ranks, a page list into frames, a frame into messages. Pure.

A row is one page of one layer, or what two ranks share of its KV heads; the unit of a copy. A
frame is rows of some layers and some pages, announced as one, layer after layer:

    layer 0: page a, page b, …  layer 1: page a, page b, …

A message is what a backend moves at once: a run of a frame's rows that fits into a staging buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from protocol.layout import KVLayout

CHECKSUM_BYTES = 8
"""Room behind the rows of a message; 8, so that buffers side by side stay aligned."""


class Shard(msgspec.Struct, frozen=True):
    """Which part of a tensor-parallel node: rank `rank` of `num_ranks`."""

    rank: int = 0
    num_ranks: int = 1

    def heads(self, num_kv_heads: int) -> range:
        """The KV heads in this rank's pool; with more ranks than heads several have the same."""
        if self.num_ranks > num_kv_heads:
            first = self.rank * num_kv_heads // self.num_ranks
            return range(first, first + 1)
        per_rank = num_kv_heads // self.num_ranks
        return range(self.rank * per_rank, (self.rank + 1) * per_rank)

    def heads_for(self, peer: Shard, num_kv_heads: int) -> range:
        """The heads that this rank sends to `peer`: over all ranks of a node, each head that the
        peer holds exactly once. May be empty."""
        mine, theirs = self.heads(num_kv_heads), peer.heads(num_kv_heads)
        num_copies = max(1, self.num_ranks // num_kv_heads)
        if self.rank % num_copies != peer.rank % num_copies:
            return range(0)  # another rank with the same head sends it
        return range(max(mine.start, theirs.start), min(mine.stop, theirs.stop))


WHOLE = Shard()
"""The only rank of a node that is not tensor-parallel."""


def divides(num_ranks: int, num_kv_heads: int) -> bool:
    """True if the heads can be split over so many ranks, or each be held by as many ranks."""
    return num_kv_heads % num_ranks == 0 or num_ranks % num_kv_heads == 0


class FrameShape(msgspec.Struct, frozen=True, array_like=True):
    """Pages [offset, offset + num_pages) of a transfer in layers [first_layer, … + num_layers)."""

    offset: int
    num_pages: int
    first_layer: int
    num_layers: int

    @property
    def num_rows(self) -> int:
        return self.num_pages * self.num_layers

    def is_within(self, layout: KVLayout, max_pages: int) -> bool:
        """False for what no honest peer sends."""
        return (
            self.offset >= 0
            and 0 < self.num_pages <= max_pages
            and 0 <= self.first_layer < self.first_layer + self.num_layers <= layout.num_layers
        )


def frames_of_pages(
    num_pages: int, offset: int, num_layers: int, page_bytes: int, max_frame_bytes: int
) -> Iterator[FrameShape]:
    """Pages that are complete, a run of them after the other: at least one page each.

    `page_bytes`: of one page over all layers. Leading pages arrive first, and a long transfer
    leaves gaps for others.
    """
    per_frame = max(1, max_frame_bytes // page_bytes)
    for start in range(0, num_pages, per_frame):
        yield FrameShape(offset + start, min(per_frame, num_pages - start), 0, num_layers)


@dataclass(frozen=True)
class Cut:
    """How both ends of a link cut frames into messages."""

    row_bytes: int
    rows_per_message: int

    @classmethod
    def of(cls, layout: KVLayout, num_heads: int, message_bytes: int) -> Cut:
        """For rows of `num_heads` KV heads; at least one row a message, whatever its size."""
        row_bytes = layout.layer_page_bytes * num_heads // layout.num_kv_heads
        return cls(row_bytes, max(1, message_bytes // row_bytes))

    @property
    def buffer_bytes(self) -> int:
        """Size of a staging buffer."""
        return self.rows_per_message * self.row_bytes + CHECKSUM_BYTES

    def num_messages(self, frame: FrameShape) -> int:
        return -(-frame.num_rows // self.rows_per_message)

    def messages(self, frame: FrameShape) -> Iterator[range]:
        """The rows of each message, counted within the frame."""
        for start in range(0, frame.num_rows, self.rows_per_message):
            yield range(start, min(start + self.rows_per_message, frame.num_rows))


def row_numbers(
    frame: FrameShape, pages: Sequence[int] | np.ndarray, num_pool_pages: int
) -> np.ndarray:
    """[rows of the frame] int64: where they lie in a pool of [layers, pages] rows.

    `pages`: the pool's pages of the frame, in order.
    """
    layers = np.arange(frame.first_layer, frame.first_layer + frame.num_layers)
    return np.add.outer(layers * num_pool_pages, np.asarray(pages)).ravel()
