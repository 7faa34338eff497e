"""A node whose threads are all held up is busy, not dead: no lease, link or request is lost."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import Cluster, body_of, start_cluster, wait_until
from tests.support.processes.forked import HELD_S, start_holdable

LEASE_S = 1.0
LENGTH = 150
"""Tokens of answers that must still go on when the lock is taken."""
LONG = 500
"""As many when a process is killed, however late the test reads."""
assert LEASE_S < HELD_S / 2
LOSSES = re.compile(r"is lost|left$|joins|lost the record|link .* lost|attempt .* failed|stuck")
"""What processes log when a lease, a link or an attempt ends, or a node comes back."""


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    cluster = start_cluster(
        tmp_path_factory, random_model[0], 1, 1, start=start_holdable, lease_s=str(LEASE_S)
    )
    cluster.generate(prompt_of(60, 199, seed=1))  # the links are made
    joined = [line for line in losses(cluster) if line.endswith(")") and " joins " in line]
    assert len(joined) == len(losses(cluster)) == 2, "the logs tell what becomes of nodes"
    yield cluster
    cluster.local.stop()


def losses(cluster: Cluster) -> list[str]:
    lines = []
    for name in cluster.local.children:
        log = (cluster.local.log_dir / f"{name}.log").read_text()
        lines += [f"{name}: {line}" for line in log.splitlines() if LOSSES.search(line)]
    return lines


def hold(cluster: Cluster, name: str) -> None:
    """Has a node hold its lock, until its heartbeats tell that it is busy beyond its lease."""
    cluster.local.children[name].process.send_signal(signal.SIGUSR1)
    wait_until(
        lambda: cluster.nodes()[name]["load"]["turn_s"] > LEASE_S, f"news that {name} is busy"
    )


def test_a_decode_node_is_held_up_mid_stream(
    cluster: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    prompt = prompt_of(60, 199, seed=2)
    body = body_of(prompt, max_new_tokens=200) | {"stream": True}
    before, known = losses(cluster), cluster.nodes()
    update: dict[str, Any] = {}
    is_held = False
    with cluster.http.stream("POST", "/generate", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            update = json.loads(line.removeprefix("data: "))
            if not is_held and len(update["output_ids"]) >= 3:
                assert update["meta_info"]["finish_reason"] is None
                hold(cluster, "d0")
                is_held = True
    assert is_held
    assert update["output_ids"] == reference_tokens(random_model[1], prompt, 200)
    assert update["meta_info"]["attempts"] == 1, losses(cluster)
    assert losses(cluster) == before
    assert_the_same_lives(cluster, known)


def test_a_prefill_node_is_held_up_before_it_sends(
    cluster: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    before, known = losses(cluster), cluster.nodes()
    prompt = prompt_of(100, 199, seed=3)
    hold(cluster, "p0")
    answer = cluster.generate(prompt)
    assert answer["output_ids"] == reference_tokens(random_model[1], prompt, 8)
    assert answer["meta_info"]["attempts"] == 1, losses(cluster)
    assert answer["meta_info"]["prefill_node"] == "p0"
    assert losses(cluster) == before
    assert_the_same_lives(cluster, known)


def test_a_decode_node_is_held_up_while_pages_come(
    cluster: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    """The prefill node waits for it within a transfer, and goes on serving nobody else's loss."""
    before, known = losses(cluster), cluster.nodes()
    prompts = [prompt_of(600, 199, seed=seed) for seed in range(4, 8)]
    answers: dict[int, dict[str, Any]] = {}
    threads = [
        threading.Thread(
            target=lambda i=i, p=p: answers.update({i: cluster.generate(p, max_new_tokens=LENGTH)})
        )
        for i, p in enumerate(prompts)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: cluster.nodes()["d0"]["load"]["num_running"] > 0, "work at the decode node")
    hold(cluster, "d0")
    for thread in threads:
        thread.join()
    for i, prompt in enumerate(prompts):
        assert answers[i]["output_ids"] == reference_tokens(random_model[1], prompt, LENGTH)
        assert answers[i]["meta_info"]["attempts"] == 1, losses(cluster)
    assert losses(cluster) == before
    assert_the_same_lives(cluster, known)


def assert_the_same_lives(cluster: Cluster, known: dict[str, dict[str, Any]]) -> None:
    cluster.wait_until_idle()
    now = cluster.nodes()
    assert {name: node["incarnation"] for name, node in now.items()} == {
        name: node["incarnation"] for name, node in known.items()
    }
    for node in now.values():
        assert node["links"] and all(link["open"] for link in node["links"])
        assert sum(link["failures"] for link in node["links"]) == 0


@pytest.fixture(scope="module")
def impatient(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    """Two decode nodes that soon count as stuck, under leases that end long after the test."""
    cluster = start_cluster(
        tmp_path_factory,
        random_model[0],
        0,
        2,
        start=start_holdable,
        lease_s="1000",
        stall_s=str(HELD_S / 2),
    )
    yield cluster
    cluster.local.stop()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL], ids=["stuck", "killed"])
def test_a_goodbye_of_the_companion_moves_requests_at_once(
    impatient: Cluster,
    random_model: tuple[Path, PreTrainedModel],
    number: signal.Signals,
) -> None:
    prompt = prompt_of(60, 199, seed=number)
    body = body_of(prompt, max_new_tokens=LONG) | {"stream": True}
    update: dict[str, Any] = {}
    first = ""
    with impatient.http.stream("POST", "/generate", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            update = json.loads(line.removeprefix("data: "))
            if not first and len(update["output_ids"]) >= 3:
                first = update["meta_info"]["decode_node"]
                impatient.local.children[first].process.send_signal(number)
    assert update["output_ids"] == reference_tokens(random_model[1], prompt, LONG)
    attempts = update["meta_info"]["attempts"]
    assert attempts >= 2
    # On a crowded machine the other node may stand still for as long, and count as stuck, too.
    assert attempts > 2 or update["meta_info"]["decode_node"] != first
    if number == signal.SIGUSR1:
        wait_until(lambda: first in impatient.nodes(), "the return of the node")
        impatient.wait_until_idle()
