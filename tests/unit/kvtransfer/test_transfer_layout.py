"""Heads over ranks, pages into frames, frames into messages."""

from __future__ import annotations

import pytest

from kvtransfer.pages.frame_plan import frames_of_pages, layers_of_frames
from kvtransfer.pages.layout import FrameShape, Shard, row_numbers
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


@pytest.mark.parametrize(
    ("min_layers", "max_layers", "sizes"),
    [
        (1, 4, [4] * 7 + [3, 1]),  # 4,096 tokens of Llama-3-8B over NCCL: 16 MiB a layer
        (4, 32, [25, 5, 2]),  # 512 tokens
        (1, 1, [1] * 32),  # 16,384 tokens: a layer is a message
        (99, 1, [32]),
        (20, 20, [20, 12]),
    ],
)
def test_a_stream_ends_with_a_short_frame(
    min_layers: int, max_layers: int, sizes: list[int]
) -> None:
    assert list(layers_of_frames(32, min_layers, max_layers)) == sizes


@pytest.mark.parametrize(
    ("num_pages", "sizes"), [(1, [1]), (8, [4, 4]), (20, [5] * 4), (32, [32]), (100, [96, 4])]
)
def test_a_short_transfer_is_several_frames(num_pages: int, sizes: list[int]) -> None:
    """Pages of 8 units in messages of 64, of which a frame has 12."""
    shapes = frames_of_pages(num_pages, 0, 5, 8, message_bytes=64, max_frame_bytes=768)
    assert [shape.num_pages for shape in shapes] == sizes


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
