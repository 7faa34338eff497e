"""What `kvrelay up` starts, from its flags."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from infra.cluster import ClusterPlan, LocalCluster
from infra.up import plan


def sizes(
    monkeypatch: pytest.MonkeyPatch, flags: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, str]:
    """The size that each node is told; "" if it is not."""
    started: dict[str, str] = {}
    cluster = LocalCluster(plan(flags, environment))

    def start_process(role: str, name: str, flags: Mapping[str, str]) -> None:
        started[name] = flags.get("tensor_parallel_size", "")

    monkeypatch.setattr(cluster, "start_process", start_process)
    cluster.start_node("prefill", "p0")
    cluster.start_node("decode", "d0")
    return started


def test_prefill_and_decode_nodes_may_have_sizes_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sizes(monkeypatch, {}, {}) == {"p0": "", "d0": ""}
    both = {"tensor_parallel_size": "2"}
    assert sizes(monkeypatch, both, {}) == {"p0": "2", "d0": "2"}
    decode = both | {"decode_tensor_parallel_size": "4"}
    assert sizes(monkeypatch, decode, {}) == {"p0": "2", "d0": "4"}
    variable = {"KVRELAY_PREFILL_TENSOR_PARALLEL_SIZE": "4"}
    assert sizes(monkeypatch, both, variable) == {"p0": "4", "d0": "2"}


def test_a_local_cluster_shares_its_memory_out(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Mapping[str, str]] = []
    cluster = LocalCluster(ClusterPlan(2, 2, "127.0.0.1", 1))
    monkeypatch.setattr(cluster, "start_process", lambda role, name, flags: started.append(flags))
    cluster.start_node("prefill", "p0")
    monkeypatch.setenv("KVRELAY_MEMORY_SHARE", "0.9")
    cluster.start_node("prefill", "p1")
    assert float(started[0]["memory_share"]) == 0.25
    assert "memory_share" not in started[1], "the variable counts"
