"""GET /admin/events of a running cluster: what a request does is in the snapshots behind it."""

from __future__ import annotations

import json
from typing import Any

from tests.support.engine.driving import prompt_of
from tests.support.processes.clusters import Cluster, wait_until


def snapshot(cluster: Cluster) -> dict[str, Any]:
    """Returns what one who looks for a moment sees."""
    response = cluster.http.get("/admin/events?snapshots=1").raise_for_status()
    return dict(json.loads(response.text.removeprefix("data: ")))


def test_a_request_is_in_every_panel_that_it_concerns(pair_cluster: Cluster) -> None:
    answered = [
        pair_cluster.generate(prompt_of(200, 199, seed=700), max_new_tokens=6)["meta_info"]
        for _ in range(2)
    ]
    pair_cluster.settle()
    # All who look within half a second share one snapshot.
    shown = wait_until(lambda: _with(snapshot(pair_cluster), answered[-1]["id"]), "the decision")
    decision = next(one for one in shown["decisions"] if one["rid"] == answered[-1]["id"])
    assert decision["reason"] == answered[-1]["route_reason"]
    assert decision["cached_tokens"] == answered[-1]["cached_tokens"] > 0
    assert decision["forecast_ms"] > 0 and decision["actual_ms"] > 0

    nodes = {node["name"]: node for node in shown["nodes"]}
    assert {"p0", "d0"} <= nodes.keys() and nodes["p0"]["state"] == "ready"
    assert nodes["d0"]["cached_pages"] > 0 and nodes["p0"]["hit_ratio"] > 0
    assert shown["waterfall"]["requests"] >= 2
    assert shown["waterfall"]["first_token_p50_ms"] > 0
    (link,) = [one for one in shown["links"] if (one["sender"], one["receiver"]) == ("p0", "d0")]
    assert link["bytes_total"] > 0 and link["transport"]
    assert shown["cache"]["reused_tokens"] > 0 and shown["cache"]["unique_pages"] > 0
    tiles = {tile["name"]: tile for tile in shown["tiles"]}
    assert tiles["Redis"]["value"] == "up" and tiles["requests"]["value"] > 0
    assert {"joined", "redis_back"} <= {event["kind"] for event in shown["events"]}


def _with(shown: dict[str, Any], rid: str) -> dict[str, Any]:
    """Returns the snapshot if it has the decision of a request; else nothing."""
    return shown if any(one["rid"] == rid for one in shown["decisions"]) else {}
