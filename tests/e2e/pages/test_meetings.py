"""Nodes have links to one another before the first request, and before they are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from tests.support.engine.driving import prompt_of
from tests.support.processes.clusters import Cluster, start_cluster, wait_until


def open_links(cluster: Cluster) -> set[tuple[str, str, str]]:
    return {
        (name, link["direction"], link["peer"])
        for name, node in cluster.nodes().items()
        for link in node["links"]
        if link["open"]
    }


def links_of(cluster: Cluster) -> list[dict[str, Any]]:
    return [link for node in cluster.nodes().values() for link in node["links"]]


def test_links_are_there_before_requests_and_after_a_restart(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> None:
    cluster = start_cluster(tmp_path_factory, random_model[0], 1, 1, lease_s="1.0")
    pair = [("p0", "d0"), ("d0", "p0")]
    everything = {(name, way, peer) for name, peer in pair for way in ("in", "out")}
    try:
        wait_until(lambda: open_links(cluster) == everything, "links in both directions")
        assert all(link["bytes"] == link["failures"] == 0 for link in links_of(cluster))
        cluster.kill("p0")
        cluster.restart_killed_nodes()
        wait_until(lambda: open_links(cluster) == everything, "links to the new life")
        assert cluster.generate(prompt_of(60, 199, seed=1))["meta_info"]["attempts"] == 1
        counters = [node["load"]["counters"] for node in cluster.nodes().values()]
        assert [counts["compiles_while_serving"] for counts in counters] == [0, 0]
        assert cluster.stats()["node_counters"]["compiles_while_serving"] == 0
    finally:
        cluster.local.stop()
