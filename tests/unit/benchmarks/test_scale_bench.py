"""The benchmark of large clusters, on one that is small."""

from __future__ import annotations

import pytest

from benchmarks.scale.cluster import ScaledCluster
from benchmarks.scale.index_size import index_figures
from node.shell.meetings import LOOK_INTERVAL_S, look_interval_s

COUNTED = ("redis_by_kind", "heartbeats_per_s", "requests", "hit", "ttft_mean_ms", "index_pages")


def test_every_request_of_a_run_ends_and_the_counts_follow_from_the_seed() -> None:
    one, other = (ScaledCluster(6, 2, 2.0, seed=1).run() for _ in range(2))
    assert one["unfinished_or_failed"] == 0 and one["requests"] > 0
    assert 0 < one["hit"] < 1
    assert {name: one[name] for name in COUNTED} == {name: other[name] for name in COUNTED}


def test_redis_is_asked_as_often_as_the_processes_say() -> None:
    """A node renews its lease three times per lease of three seconds, a coordinator looks for nodes
    twice a second, and each read of changes looks at the streams of all nodes."""
    kinds = ScaledCluster(6, 2, 4.0, seed=1).run()["redis_by_kind"]
    assert kinds["renew"]["calls_per_s"] == pytest.approx(6, rel=0.2)
    assert kinds["list_leases"]["calls_per_s"] == pytest.approx(2 * 2, rel=0.3)
    reads = kinds["read_changes"]
    assert reads["operations_per_s"] == 6 * reads["calls_per_s"]


def test_what_nodes_ask_of_redis_to_meet_others_grows_as_their_number_does() -> None:
    assert look_interval_s(1) == LOOK_INTERVAL_S
    asked_per_node = [num / look_interval_s(num) for num in range(1, 5_000)]
    assert max(asked_per_node) <= 20.01


def test_an_index_is_measured_by_the_page() -> None:
    figures = index_figures(20, 3_200)
    assert figures["pages"] == 3_200
    assert figures["match_us"] > 0
