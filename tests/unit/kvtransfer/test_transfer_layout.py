"""Heads over ranks, pages into frames, frames into messages."""

from __future__ import annotations

from kvtransfer.pages.layout import (
    FrameShape,
    Shard,
    row_numbers,
)
from protocol.layout import KVLayout

LAYOUT = KVLayout(page_size=16, num_layers=5, num_kv_heads=8, head_dim=64, dtype="bfloat16")


def test_copies_of_a_head_share_the_sending() -> None:
    sender_of = [
        rank
        for receiver in range(4)
        for rank in range(4)
        if Shard(rank, 4).heads_for(Shard(receiver, 4), num_kv_heads=2)
    ]
    assert sender_of == [0, 1, 2, 3]


def test_rows_go_layer_by_layer() -> None:
    frame = FrameShape(offset=3, num_pages=2, first_layer=1, num_layers=2)
    assert row_numbers(frame, [7, 4], num_pool_pages=100).tolist() == [107, 104, 207, 204]


def test_what_no_honest_peer_sends_is_recognised() -> None:
    assert FrameShape(0, 4, 3, 2).is_within(LAYOUT, max_pages=4)
    for shape in (
        FrameShape(-1, 1, 0, 1),
        FrameShape(0, 0, 0, 1),
        FrameShape(0, 5, 0, 1),
        FrameShape(0, 1, -1, 2),
        FrameShape(0, 1, 0, 0),
        FrameShape(0, 1, 4, 2),
    ):
        assert not shape.is_within(LAYOUT, max_pages=4), shape
