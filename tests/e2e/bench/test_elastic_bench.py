"""`make bench-elastic` for a moment on CPUs: nodes come and go under streams, unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.elastic.figures import failures, gone_unstruck, lost_leases, summary
from benchmarks.elastic.load import LoadShape
from benchmarks.elastic.memory import host_memory
from benchmarks.elastic.pairs import running
from benchmarks.elastic.pairs import summary as summary_of_pairs
from benchmarks.elastic.run import Drill, run
from infra.cluster import ClusterPlan
from infra.models import EMBEDDED
from infra.ports import free_port
from tests.support.processes.forked import start_forked

pytestmark = pytest.mark.verify
IDLE_CLOSE_S = 3.0


def test_no_request_and_no_lease_is_lost_while_nodes_come_and_go(tmp_path: Path) -> None:
    model = {"model_path": str(EMBEDDED)}
    node = {
        "device": "cpu",
        "dtype": "float32",
        "deterministic": "true",
        "max_total_tokens": "16384",
        "kv_idle_close_s": str(IDLE_CLOSE_S),
    }
    plan = ClusterPlan(
        *(2, 2, "127.0.0.1", free_port()),
        coordinator_flags=model | {"policy": "disaggregate"},
        node_flags=model | node,
    )
    load = LoadShape(1.0, 3, first_tokens=96, answer_tokens=48, vocabulary=range(8, 2000))
    drill = Drill(plan, 0, load, IDLE_CLOSE_S, 4.0, 20.0, 4.0, seed=1, within_s=300.0)
    course = run(drill, tmp_path, host_memory, start_forked)
    assert failures(course) == [] and lost_leases(course) == [] and gone_unstruck(course) == []
    line = summary(course)
    assert line["changes"].keys() >= {"join", "kill"} and sum(line["changes"].values()) == 4
    assert sum(at > 0 for at in line["streams_at_changes"]) >= 2, "changes under streams"
    assert line["changed"]["requests"] >= 20 and line["joined"] >= 1
    assert line["pairs_opened"] > 0 == line["pairs_open_when_idle"]
    assert all(one["memory_peak_mib"] for one in line["nodes"] if not one["ended"])


@pytest.mark.parametrize("backend", ["shm", "tcp"])
def test_pairs_leave_nothing_behind_when_they_are_idle_or_their_peer_is_killed(
    backend: str,
) -> None:
    with running("default", backend, 3, IDLE_CLOSE_S) as hub:
        hub.measure()
    killed = next(step for step in hub.steps if step.what.startswith("killed"))
    most = max(step.num_open for step in hub.steps)
    assert most > killed.num_open, "the links to the dead peer are closed"
    figures = summary_of_pairs(hub.steps)["default"]
    assert figures["left_open"] == max(0, figures["left_files"]) == 0
    assert figures["open_again"]["times"] == 2
