"""Nodes whose KV heads are split over ranks: each pair of ranks exchanges just what both have."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kvtransfer.backends.faulty import FaultPlan, Faults
from kvtransfer.pages.layout import Shard
from protocol.layout import KVLayout
from tests.support.transfer.endpoints import NUM_PAGES, Endpoint, Make, attempt, same

SIZES = [1, 2, 4]
HEADS = {4: KVLayout(4, 3, 4, 8, "bfloat16"), 2: KVLayout(4, 3, 2, 8, "float32")}
"""By number of KV heads; with two of them, four ranks hold each twice."""


def node(make: Make, name: str, num_ranks: int, layout: KVLayout) -> list[Endpoint]:
    return [
        make(f"{name}{rank}", layout=layout, shard=Shard(rank, num_ranks), gpu=int(name == "d"))
        for rank in range(num_ranks)
    ]


def fill(ranks: Sequence[Endpoint], whole: Tensor, num_heads: int) -> None:
    """Writes to each rank's pool its heads of `whole`."""
    for rank, end in enumerate(ranks):
        heads = Shard(rank, len(ranks)).heads(num_heads)
        end.pool.copy_(whole[..., heads.start : heads.stop, :])


@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize(("senders", "receivers"), list(itertools.product(SIZES, SIZES)))
def test_every_rank_gets_its_heads_byte_for_byte(
    make: Make, senders: int, receivers: int, num_heads: int
) -> None:
    layout = HEADS[num_heads]
    prefill, decode = node(make, "p", senders, layout), node(make, "d", receivers, layout)
    dtype = getattr(torch, layout.dtype)
    whole = torch.randn(3, NUM_PAGES, 2, 4, num_heads, 8).to(dtype)
    fill(prefill, whole, num_heads)
    wanted = [end.pool.clone() for end in decode]
    source, target = [7, 3, 60, 11], [5, 63, 0, 9]
    for rank, content in enumerate(wanted):
        heads = Shard(rank, receivers).heads(num_heads)
        content[:, target] = whole[:, source][..., heads.start : heads.stop, :].to(content.device)
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
        assert same(end.pool, content)
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
