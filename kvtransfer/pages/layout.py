"""Which bytes go where: KV heads over ranks, a page list into frames, a frame into messages. Pure.

A row is one page of one layer, cut to the KV heads that both ranks have: the unit of a copy. A
frame is the rows of some pages in some layers, announced together and sent layer after layer:

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
"""The room for a checksum behind the rows of a message. A CRC-32 needs 4 bytes; with 8, buffers
that lie side by side stay aligned for copies of 8-byte elements."""


class Shard(msgspec.Struct, frozen=True):
    """Which part of a tensor-parallel node a rank is: number `rank` of `num_ranks`."""

    rank: int = 0
    num_ranks: int = 1

    def heads(self, num_kv_heads: int) -> range:
        """Returns the KV heads in this rank's pool, as the whole model counts them. With more ranks
        than heads, each rank has one head, and neighbouring ranks have the same one."""
        if self.num_ranks > num_kv_heads:
            first = self.rank * num_kv_heads // self.num_ranks
            return range(first, first + 1)
        per_rank = num_kv_heads // self.num_ranks
        return range(self.rank * per_rank, (self.rank + 1) * per_rank)

    def heads_for(self, peer: Shard, num_kv_heads: int) -> range:
        """Returns the KV heads that this rank sends to the rank `peer` of another node.

        All ranks of this rank's node together send each head that the peer holds exactly once, so
        the range is empty for many pairs of ranks.
        """
        mine, theirs = self.heads(num_kv_heads), peer.heads(num_kv_heads)
        num_copies = max(1, self.num_ranks // num_kv_heads)
        # Several ranks of this node hold the same head: the remainder decides which of them sends
        # it to this peer, and spreads the peers over them.
        if self.rank % num_copies != peer.rank % num_copies:
            return range(0)
        return range(max(mine.start, theirs.start), min(mine.stop, theirs.stop))


WHOLE = Shard()
"""The only rank of a node that is not tensor-parallel."""


def divides(num_ranks: int, num_kv_heads: int) -> bool:
    """Returns True if the heads can be split evenly over the ranks, or the ranks over the heads."""
    return num_kv_heads % num_ranks == 0 or num_ranks % num_kv_heads == 0


class FrameShape(msgspec.Struct, frozen=True, array_like=True):
    """Which part of a transfer a frame is: a run of pages in a run of layers."""

    offset: int
    """The number, within the transfer, of the first page."""
    num_pages: int
    first_layer: int
    num_layers: int

    @property
    def num_rows(self) -> int:
        """The number of rows of the frame."""
        return self.num_pages * self.num_layers

    def is_within(self, layout: KVLayout, max_pages: int) -> bool:
        """Returns False for a shape that no honest peer sends: it must be checked before memory is
        reserved for it."""
        return (
            self.offset >= 0
            and 0 < self.num_pages <= max_pages
            and 0 <= self.first_layer < self.first_layer + self.num_layers <= layout.num_layers
        )


@dataclass(frozen=True)
class Cut:
    """How both ends of a link cut frames into messages. Both must have equal ones."""

    row_bytes: int
    """The size of a row, cut to the KV heads that the link carries."""
    rows_per_message: int

    @classmethod
    def of(cls, layout: KVLayout, num_heads: int, message_bytes: int) -> Cut:
        """Returns the cut for rows of `num_heads` KV heads and messages of about `message_bytes`.

        A message has at least one row, even one that is longer than `message_bytes`.
        """
        row_bytes = layout.layer_page_bytes * num_heads // layout.num_kv_heads
        return cls(row_bytes, max(1, message_bytes // row_bytes))

    @property
    def buffer_bytes(self) -> int:
        """The size of a staging buffer, which has room for the longest message."""
        return self.rows_per_message * self.row_bytes + CHECKSUM_BYTES

    def num_messages(self, frame: FrameShape) -> int:
        """Returns how many messages the frame takes."""
        return -(-frame.num_rows // self.rows_per_message)

    def messages(self, frame: FrameShape) -> Iterator[range]:
        """Yields the rows of each message, numbered from 0 within the frame."""
        for start in range(0, frame.num_rows, self.rows_per_message):
            yield range(start, min(start + self.rows_per_message, frame.num_rows))


def row_numbers(
    frame: FrameShape, pages: Sequence[int] | np.ndarray, num_pool_pages: int
) -> np.ndarray:
    """Returns, for each row of the frame, its number in a pool of [layers, pages] rows.

    `pages` are the frame's pages in the pool, in order. The result is [rows of the frame] int64.
    """
    layers = np.arange(frame.first_layer, frame.first_layer + frame.num_layers)
    return np.add.outer(layers * num_pool_pages, np.asarray(pages)).ravel()
