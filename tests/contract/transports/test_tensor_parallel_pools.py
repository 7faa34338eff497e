"""Nodes whose KV heads are split over ranks: each pair of ranks exchanges just what both have."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kvtransfer.backends.faulty import FaultPlan, Faults
from kvtransfer.pages.layout import Shard
from protocol.layout import FP8, KVLayout
from tests.support.transfer.endpoints import NUM_PAGES, Endpoint, Make, attempt, same

SIZES = [1, 2, 4]
HEADS = {4: KVLayout(4, 3, 4, 8, "bfloat16"), 2: KVLayout(4, 3, 2, 8, "float32")}
"""By number of KV heads; with two of them, four ranks hold each twice."""
SCALED = [KVLayout(4, 3, 4, 8, FP8, "token"), KVLayout(2, 3, 4, 10, FP8, "token")]
"""Rows of these can, and cannot, be copied in elements of 8 bytes."""
UNCHANGED = KVLayout(4, 3, 4, 8, FP8, "static")


def node(make: Make, name: str, num_ranks: int, layout: KVLayout) -> list[Endpoint]:
    return [
        make(f"{name}{rank}", layout=layout, shard=Shard(rank, num_ranks), gpu=int(name == "d"))
        for rank in range(num_ranks)
    ]


def random_heads(layout: KVLayout) -> list[Tensor]:
    """What a pool has of all heads, as bytes: their values, and their scales."""
    shape = (layout.num_layers, NUM_PAGES, 2, layout.page_size, layout.num_kv_heads)
    sizes = (layout.head_bytes, layout.scale_bytes)
    return [torch.randint(256, (*shape, size), dtype=torch.uint8) for size in sizes]


def pool_of(whole: Sequence[Tensor], rank: int, num_ranks: int) -> Tensor:
    """What a rank's pool has of `whole`, [layers, pages, bytes]: its values, then its scales."""
    heads = Shard(rank, num_ranks).heads(whole[0].shape[4])
    return torch.cat([part[..., heads.start : heads.stop, :].flatten(2) for part in whole], -1)


def as_bytes(pool: Tensor) -> Tensor:
    return pool.flatten(2).view(torch.uint8)


@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize(("senders", "receivers"), list(itertools.product(SIZES, SIZES)))
def test_every_rank_gets_its_heads_byte_for_byte(
    make: Make, senders: int, receivers: int, num_heads: int
) -> None:
    check_overlap(make, senders, receivers, HEADS[num_heads])


@pytest.mark.parametrize(
    ("layout", "senders", "receivers"),
    [(SCALED[0], 2, 1), (SCALED[0], 4, 2), (SCALED[1], 1, 2), (UNCHANGED, 1, 4)],
)
def test_scales_go_with_their_heads(
    make: Make, layout: KVLayout, senders: int, receivers: int
) -> None:
    check_overlap(make, senders, receivers, layout)


def check_overlap(make: Make, senders: int, receivers: int, layout: KVLayout) -> None:
    prefill, decode = node(make, "p", senders, layout), node(make, "d", receivers, layout)
    whole, num_heads = random_heads(layout), layout.num_kv_heads
    for rank, end in enumerate(prefill):
        as_bytes(end.pool).copy_(pool_of(whole, rank, senders))
    wanted = [as_bytes(end.pool).clone() for end in decode]
    source, target = [7, 3, 60, 11], [5, 63, 0, 9]
    for rank, content in enumerate(wanted):
        content[:, target] = pool_of(whole, rank, receivers)[:, source].to(content.device)
        decode[rank].expect(attempt(), target)
    addresses = [end.address for end in decode]
    for end in prefill:
        end.send(addresses, attempt(), source[:2])
        stream = end.stream(addresses, attempt(), source[2:], offset=2)
        stream.layers_ready(1)
        stream.finish()
    for end in prefill:
        assert [end.await_sent() for _ in range(2)] == [(attempt(), "")] * 2
    for end, content in zip(decode, wanted, strict=True):
        assert end.await_received() == (attempt(), "")
        assert same(as_bytes(end.pool), content)
    row_bytes = layout.page_bytes // num_heads
    moved = sum(link.bytes_moved for end in prefill for link in end.transport.links())
    wanted_heads = sum(len(Shard(rank, receivers).heads(num_heads)) for rank in range(receivers))
    assert moved == len(source) * row_bytes * wanted_heads, "more than the overlap was sent"


def test_one_lost_rank_fails_the_transfer_where_it_sends_to(make: Make) -> None:
    """The sends of one rank are cut; the pages of the other ranks arrive."""
    layout, broken = HEADS[4], Faults(FaultPlan(cut_sends=frozenset([1])))
    decode = node(make, "d", 2, layout)
    prefill = [
        make(
            f"p{rank}",
            layout=layout,
            shard=Shard(rank, 4),
            gpu=0,
            faults=broken if rank == 3 else None,
        )
        for rank in range(4)
    ]
    addresses = [end.address for end in decode]
    for end in decode:
        end.expect(attempt(), [0, 1])
    for end in prefill:
        end.send(addresses, attempt(), [1])
        assert end.await_sent() == (attempt(), "")
    for end in decode:
        assert end.await_progress() == (attempt(), 1)
    for end in prefill:
        end.send(addresses, attempt(), [2], offset=1)
    assert "cut this send" in prefill[3].await_sent()[1]
    assert decode[0].await_received() == (attempt(), "")
    assert "p3" in decode[1].await_received()[1]


def test_a_rank_that_is_taken_for_another_refuses(make: Make) -> None:
    layout = HEADS[4]
    (whole,), (_, second) = node(make, "p", 1, layout), node(make, "d", 2, layout)
    second.expect(attempt(), [0])
    whole.send([second.address, second.address], attempt(), [0])
    assert "this is rank 1 of 2, not 0 of 2" in whole.await_sent()[1]
