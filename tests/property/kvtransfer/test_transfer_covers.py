"""Whatever is transferred, each head, page and row is sent once, in bounded pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.pages.frame_plan import (
    MIN_PART,
    OVERLAPPED_PARTS,
    TAPER,
    frames_of_pages,
    layers_of_frames,
)
from kvtransfer.pages.layout import CHECKSUM_BYTES, Cut, FrameShape, Shard
from protocol.layout import KVLayout

LAYOUT = KVLayout(page_size=16, num_layers=5, num_kv_heads=8, head_dim=64, dtype="bfloat16")
ranks = st.sampled_from([1, 2, 4, 8, 16])


heads = st.sampled_from([1, 2, 4, 8])


@given(heads, ranks, ranks)
def test_each_head_of_a_receiver_comes_from_one_sender(
    num_heads: int, senders: int, receivers: int
) -> None:
    for receiver in range(receivers):
        peer = Shard(receiver, receivers)
        sent = [
            head
            for rank in range(senders)
            for head in Shard(rank, senders).heads_for(peer, num_heads)
        ]
        assert sorted(sent) == list(peer.heads(num_heads))


@given(heads, ranks)
def test_the_ranks_of_a_node_hold_all_heads_evenly(num_heads: int, num_ranks: int) -> None:
    held = [h for rank in range(num_ranks) for h in Shard(rank, num_ranks).heads(num_heads)]
    copies = max(1, num_ranks // num_heads)
    assert sorted(held) == sorted(list(range(num_heads)) * copies)


@given(st.integers(1, 50), st.integers(0, 9), st.integers(1, 4 << 20), st.integers(1, 20 << 20))
def test_frames_cover_every_page_once_within_the_bound(
    num_pages: int, offset: int, message_bytes: int, max_bytes: int
) -> None:
    shapes = list(
        frames_of_pages(num_pages, offset, 5, LAYOUT.page_bytes, message_bytes, max_bytes)
    )
    pages = [p for s in shapes for p in range(s.offset, s.offset + s.num_pages)]
    assert pages == list(range(offset, offset + num_pages))
    for shape in shapes:
        assert (shape.first_layer, shape.num_layers) == (0, 5)
        assert shape.num_pages == 1 or shape.num_pages * LAYOUT.page_bytes <= max_bytes
    assert len({shape.num_pages for shape in shapes[:-1]}) <= 1
    assert shapes[-1].num_pages <= shapes[0].num_pages


@given(st.integers(1, 200), st.integers(1, 40 << 20))
def test_few_pages_are_several_frames_none_of_which_is_too_short(
    num_pages: int, message_bytes: int
) -> None:
    max_bytes = 8 * message_bytes
    shapes = list(frames_of_pages(num_pages, 0, 5, LAYOUT.page_bytes, message_bytes, max_bytes))
    if 1 <= num_pages * LAYOUT.page_bytes / message_bytes < OVERLAPPED_PARTS:
        assert len(shapes) >= min(MIN_PART, num_pages)
    for shape in shapes[:-1]:
        assert shape.num_pages * LAYOUT.page_bytes * MIN_PART >= message_bytes


layers = st.integers(1, 130)


@given(layers, layers, layers)
def test_frames_of_a_stream_have_every_layer_once_the_last_one_short(
    num_layers: int, min_layers: int, max_layers: int
) -> None:
    sizes = list(layers_of_frames(num_layers, min_layers, max_layers))
    assert sum(sizes) == num_layers and all(size > 0 for size in sizes)
    assert max(sizes) <= max(min_layers, max_layers)
    assert sizes[-1] <= min_layers
    left = num_layers
    for size in sizes[:-1]:
        left -= size
        assert size >= min_layers
        assert size == min_layers or size <= TAPER * left


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 8), st.integers(1, 4 << 20))
def test_messages_cover_every_row_once_within_the_bound(
    num_pages: int, num_layers: int, num_heads: int, message_bytes: int
) -> None:
    cut = Cut.of(LAYOUT, num_heads, message_bytes)
    frame = FrameShape(0, num_pages, 0, num_layers)
    messages = list(cut.messages(frame))
    assert [row for rows in messages for row in rows] == list(range(frame.num_rows))
    assert cut.row_bytes * 8 == LAYOUT.layer_page_bytes * num_heads
    for rows in messages:
        num_bytes = len(rows) * cut.row_bytes
        assert len(rows) == 1 or num_bytes <= message_bytes
        assert num_bytes + CHECKSUM_BYTES <= cut.buffer_bytes
