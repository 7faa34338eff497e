"""How large a KV pool each rank takes, and which device."""

from __future__ import annotations

import pytest
import torch

from node import pool_size
from node.config import NodeConfig
from node.devices import devices_of
from node.pool_size import CPU_POOL_TOKENS, pool_pages
from protocol.config import ConfigError
from tests.support.coordinator.nodes import LAYOUT

GIB = 1 << 30


def pool_tokens(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    available: int,
    total: int,
    share: float = 1.0,
    size: int = 1,
) -> int:
    monkeypatch.setattr(pool_size, "memory_bytes", lambda _: (available, total))
    config = NodeConfig(memory_share=share, tensor_parallel_size=size)
    return pool_pages(config, LAYOUT, torch.device(device)) * LAYOUT.page_size


def test_a_laptop_with_little_free_memory_still_gets_a_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = pool_tokens(monkeypatch, "cpu", GIB // 16, 16 * GIB)
    quarter = pool_tokens(monkeypatch, "cpu", GIB // 16, 16 * GIB, share=0.25)
    assert 10_000 < whole < CPU_POOL_TOKENS
    assert quarter == pytest.approx(whole / 4, abs=LAYOUT.page_size)
    assert pool_tokens(monkeypatch, "cpu", 16 * GIB, 16 * GIB) == CPU_POOL_TOKENS
    with pytest.raises(ConfigError, match="--memory-share"):
        pool_tokens(monkeypatch, "cpu", 100, 16 * GIB)


def test_nodes_that_share_a_gpu_all_get_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    available, pools = 79 * GIB, []
    for _ in range(4):
        tokens = pool_tokens(monkeypatch, "cuda", available, 80 * GIB, share=0.25)
        pools.append(tokens)
        available -= tokens // LAYOUT.page_size * LAYOUT.page_bytes
    assert min(pools) > 0.9 * max(pools)
    assert available >= 0.15 * 80 * GIB


def test_weights_of_nodes_that_share_a_gpu_come_out_of_their_own_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first node to count takes a pool; the second, whose weights are loaded by then, gets one
    of the same size."""
    weights, available = 16 * GIB, (80 - 2 * 16) * GIB
    monkeypatch.setattr(pool_size, "taken_bytes", lambda _: weights)
    pools = []
    for _ in range(2):
        tokens = pool_tokens(monkeypatch, "cuda", available, 80 * GIB, share=0.5)
        pools.append(tokens)
        available -= tokens // LAYOUT.page_size * LAYOUT.page_bytes
    assert min(pools) > 0.99 * max(pools)
    assert pools[0] // LAYOUT.page_size * LAYOUT.page_bytes + weights <= 0.5 * 80 * GIB


def test_ranks_share_the_memory_of_a_host_but_not_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    available = GIB // 16
    whole = pool_tokens(monkeypatch, "cpu", available, 16 * GIB)
    half = pool_tokens(monkeypatch, "cpu", available, 16 * GIB, size=2)
    assert half == pytest.approx(whole / 2, abs=LAYOUT.page_size), "of pages as large as a whole's"
    gpu = [pool_tokens(monkeypatch, "cuda", 79 * GIB, 80 * GIB, size=size) for size in (1, 2)]
    assert gpu[0] == gpu[1]


def test_ranks_get_devices_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_of("cpu", 4) == [torch.device("cpu")] * 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert devices_of("auto", 1) == [torch.device("cuda", 0)]
    assert devices_of("auto", 4) == [torch.device("cuda", i) for i in range(4)]
    assert devices_of("cuda:1", 3) == [torch.device("cuda", i) for i in (1, 2, 3)]
    assert devices_of("cuda:3", 2) == [torch.device("cuda", i) for i in (3, 0)]
    for name, size in (("cuda:0", 5), ("cuda:4", 2)):
        with pytest.raises(ConfigError, match=f"needs {size} devices, {name} among.* torch sees 4"):
            devices_of(name, size)


def test_a_device_that_is_none_stops_the_start() -> None:
    for name in ("gpu", "cuda:x"):
        with pytest.raises(ConfigError, match="is no device"):
            devices_of(name, 1)


@pytest.mark.parametrize(("device", "size"), [("cpu", 1), ("cpu", 2), ("cuda", 2)])
def test_more_tokens_than_memory_holds_are_refused_before_any_is_taken(
    device: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_size, "memory_bytes", lambda _: (GIB, 16 * GIB))
    sharing = size if device == "cpu" else 1
    most = GIB // LAYOUT.page_bytes // sharing * LAYOUT.page_size
    told = NodeConfig(tensor_parallel_size=size, max_total_tokens=most)
    assert pool_pages(told, LAYOUT, torch.device(device)) == most // LAYOUT.page_size
    too_many = NodeConfig(tensor_parallel_size=size, max_total_tokens=most + 1)
    with pytest.raises(ConfigError, match=f"1.0 GiB of memory are free on .*at most {most} tokens"):
        pool_pages(too_many, LAYOUT, torch.device(device))
