"""Several coordinator processes behind one HTTP port, and the parent that watches over them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import PreTrainedModel

from infra.ports import free_port
from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import Cluster, body_of, start_cluster, wait_until
from tests.support.processes.commands import assert_refused, kvrelay
from tests.support.processes.scrapes import Samples, samples_in, total

NUM_CONNECTIONS = 64
"""The system chooses a worker by a hash of the connection: that all go to one has a chance of
2 ** -63."""
NUM_TOKENS = 200


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    """One prefill and one decode node, and two workers whose events have only what is new."""
    flags = {"workers": "2", "stream_output": "true"}
    cluster = start_cluster(tmp_path_factory, random_model[0], 1, 1, flags)
    wait_until(lambda: len(workers_of(cluster)) == 2, "two workers that serve")
    yield cluster
    cluster.local.stop()


def workers_of(cluster: Cluster) -> dict[int, int]:
    """The process id of each worker that answers, by its number."""
    workers = {}
    for _ in range(NUM_CONNECTIONS):
        try:
            info = cluster.http.get("/server_info").json()
        except httpx.TransportError:
            continue  # of a worker that has just died
        if info["status"] == "ready":
            workers[info["worker"]] = info["process_id"]
    return workers


@contextmanager
def connection_to(cluster: Cluster, worker: int) -> Iterator[httpx.Client]:
    """A client whose only connection is to this worker."""
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    for _ in range(NUM_CONNECTIONS):
        with httpx.Client(base_url=cluster.local.url, timeout=60.0, limits=limits) as client:
            if client.get("/server_info").json()["worker"] == worker:
                yield client
                return
    raise AssertionError(f"no connection to worker {worker}")


def counts_at(client: httpx.Client) -> dict[str, Any]:
    """What the worker at the other end tells of the cluster."""
    return dict(client.get("/admin/cache/stats").json()["cluster"])


def scraped(client: httpx.Client) -> Samples:
    """What Prometheus would read of the worker at the other end."""
    return samples_in(client.get("/metrics").raise_for_status().text)


def events_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def test_counts_are_sums_over_all_workers(cluster: Cluster) -> None:
    with connection_to(cluster, 0) as first, connection_to(cluster, 1) as second:
        for client in (first, second):
            wait_until(lambda c=client: counts_at(c)["coordinators"] == 2, "two that know")  # type: ignore[misc]
        before = counts_at(first)
        for client in (first, second):
            answer = client.post("/generate", json=body_of(prompt_of(20, 199, seed=1)))
            assert answer.status_code == 200
        for client in (first, second):
            after = counts_at(client)
            assert after["requests"] == before["requests"] + 2
            assert after["unanswered_coordinators"] == []


def test_a_scrape_of_any_worker_has_the_sums_of_all(cluster: Cluster) -> None:
    """What each counts is added up; what all know alike, as the nodes, is told once."""
    with connection_to(cluster, 0) as first, connection_to(cluster, 1) as second:
        before = [scraped(client) for client in (first, second)]
        for client, times in ((first, 1), (second, 2)):
            for _ in range(times):
                body = body_of(prompt_of(20, 199, seed=2))
                assert client.post("/generate", json=body).status_code == 200
        for client, old in zip((first, second), before, strict=True):
            new = scraped(client)
            name = "kvrelay_requests_total"
            assert total(new, name) == total(old, name) + 3
            assert total(new, "kvrelay_nodes", role="decode", state="ready") == 1


def test_each_worker_knows_the_requests_of_the_others(cluster: Cluster) -> None:
    with connection_to(cluster, 0) as first, connection_to(cluster, 1) as second:
        for client in (first, second):
            wait_until(lambda c=client: counts_at(c)["coordinators"] == 2, "two that know")  # type: ignore[misc]
        answer = first.post("/generate", json=body_of(prompt_of(20, 199, seed=2)))
        rid = answer.json()["meta_info"]["id"]
        here, there = (client.get(f"/admin/requests/{rid}").json() for client in (first, second))
        assert here["spans"] == there["spans"] and here["coordinator"] == there["coordinator"]
        assert rid in {r["rid"] for r in second.get("/admin/requests").json()["requests"]}
        assert second.get("/admin/requests/nobody").status_code == 404


def test_one_dies_and_comes_back_while_streams_at_the_other_go_on(
    cluster: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    prompt = prompt_of(40, 199, seed=7)
    body = body_of(prompt, max_new_tokens=NUM_TOKENS) | {"stream": True}
    before = workers_of(cluster)
    with (
        connection_to(cluster, 0) as client,
        client.stream("POST", "/generate", json=body) as response,
    ):
        events = events_of(response.iter_lines())
        ids = next(events)["output_ids"]
        os.kill(before[1], signal.SIGKILL)
        for event in events:
            ids += event["output_ids"]
    assert ids == reference_tokens(random_model[1], prompt, NUM_TOKENS)
    wait_until(lambda: workers_of(cluster).keys() == {0, 1}, "the worker's new life")
    after = workers_of(cluster)
    assert after[0] == before[0] and after[1] != before[1]
    with connection_to(cluster, 1) as client:
        assert client.post("/generate", json=body_of(prompt)).status_code == 200


def test_sigterm_stops_all(cluster: Cluster) -> None:
    """The last test of this cluster."""
    pids = workers_of(cluster).values()
    parent = cluster.local.children["coordinator"]
    parent.terminate()
    parent.wait()
    assert parent.process.returncode == -signal.SIGTERM
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()


def test_what_no_worker_can_serve_ends_the_parent_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    flags = ["--model-path", str(tmp_path), "--port", str(free_port()), "--workers", "3"]
    assert_refused(kvrelay("coordinator", *flags), str(tmp_path))
