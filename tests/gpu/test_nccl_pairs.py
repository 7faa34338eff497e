"""NCCL pairs between two GPUs: what `tests/contract/test_transport.py` asks of every backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from endpoints import NUM_PAGES, Endpoint, attempt, new_backend, victim_process

from protocol.layout import KVLayout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices"),
]


@pytest.fixture
def ends() -> Iterator[tuple[Endpoint, Endpoint]]:
    a, b = Endpoint("a", new_backend("nccl:0")), Endpoint("b", new_backend("nccl:1"))
    yield a, b
    a.transport.close()
    b.transport.close()


def test_bytes_arrive_at_the_reserved_pages_both_ways(ends: tuple[Endpoint, Endpoint]) -> None:
    for sender, receiver in (ends, ends[::-1], ends):
        before = receiver.pool.clone()
        source, target = [7, 3, 60, 11], [5, 63, 0, 9]
        receiver.expect(attempt(), target)
        sender.send(receiver.address, attempt(), source)
        assert receiver.await_received() == (attempt(), "")
        assert sender.await_sent() == (attempt(), "")
        before[:, target] = sender.pool[:, source].to(before.device)
        assert torch.equal(receiver.pool, before)


def test_the_source_may_change_as_soon_as_send_returns(ends: tuple[Endpoint, Endpoint]) -> None:
    a, b = ends
    wanted = a.pool.clone()
    b.expect(attempt(), list(range(NUM_PAGES)))
    a.send(b.address, attempt(), list(range(NUM_PAGES)))
    a.pool.zero_()
    assert b.await_received() == (attempt(), "")
    assert torch.equal(b.pool.cpu(), wanted.cpu())


def test_both_ways_at_once(ends: tuple[Endpoint, Endpoint]) -> None:
    for number in range(8):
        for sender, receiver in (ends, ends[::-1]):
            transfer = attempt(number, str(sender.address))
            receiver.expect(transfer, [32 + number])
            sender.send(receiver.address, transfer, [number])
    for sender, receiver in (ends, ends[::-1]):
        assert {receiver.await_received()[1] for _ in range(8)} == {""}
        assert torch.equal(receiver.pool[:, 32:40].cpu(), sender.pool[:, :8].cpu())


def test_a_transfer_larger_than_a_frame() -> None:
    layout = KVLayout(page_size=64, num_layers=4, num_kv_heads=8, head_dim=64, dtype="float32")
    a = Endpoint("a", new_backend("nccl:0"), layout=layout, num_pages=400)
    b = Endpoint("b", new_backend("nccl:1"), layout=layout, num_pages=400)
    try:
        b.expect(attempt(), list(range(400)))
        a.send(b.address, attempt(), list(reversed(range(400))))
        assert b.await_received() == (attempt(), "")
        assert torch.equal(b.pool.cpu(), a.pool.flip(1).cpu())
    finally:
        a.transport.close()
        b.transport.close()


def test_a_killed_peer_hurts_nobody_and_a_restarted_one_gets_a_new_pair() -> None:
    survivor = Endpoint("survivor", new_backend("nccl:0"))
    try:
        with victim_process("nccl:1") as victim:
            survivor.expect(attempt(), [0, 1])
            victim.send(survivor.address, attempt(), [3])
            survivor.expect(attempt(5), [8])
            victim.send(survivor.address, attempt(5), [3])
            assert survivor.await_received() == (attempt(5), "")
            survivor.send(victim.address, attempt(9), [0])
            assert survivor.await_sent() == (attempt(9), "")
            victim.kill()
            transfer, error = survivor.await_received()
            assert transfer == attempt() and "victim" in error
            survivor.send(victim.address, attempt(2), [0])
            assert survivor.await_sent()[1] != ""
        with victim_process("nccl:1") as restarted:
            survivor.send(restarted.address, attempt(6), [0])
            assert survivor.await_sent() == (attempt(6), "")
            survivor.expect(attempt(7), [2])
            restarted.send(survivor.address, attempt(7), [3])
            assert survivor.await_received() == (attempt(7), "")
            assert torch.equal(survivor.pool[:, 8].isfinite().all().cpu(), torch.tensor(True))
    finally:
        survivor.transport.close()
