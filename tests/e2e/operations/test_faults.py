"""Nodes and Redis die; clients see an answer, or a clear error, and nothing is left behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import Cluster, start_cluster, wait_until

DEADLINE_S = 60.0
LENGTH = 500
"""Tokens of answers that must still come when a node is killed, however late the test reads."""


@pytest.fixture(scope="module")
def lasting(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    cluster = start_cluster(
        tmp_path_factory, random_model[0], 2, 2, max_total_tokens="16384", lease_s="1.0"
    )
    yield cluster
    cluster.local.stop()


@pytest.fixture
def cluster(lasting: Cluster) -> Cluster:
    """The one cluster of these tests, whole again after the test before, and with empty caches."""
    lasting.restart_killed_nodes()
    lasting.flush()
    return lasting


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {
            "sampling_seed": 7,
            "frequency_penalty": 0.3,
            "presence_penalty": 0.5,
            "repetition_penalty": 1.2,
            "min_new_tokens": 490,
            "stop_token_ids": list(range(3, 100)),
        },
    ],
)
def test_a_decode_node_dies_mid_stream_and_the_stream_goes_on(
    cluster: Cluster, sampling: dict[str, Any]
) -> None:
    """The stream has the very tokens of an undisturbed one: drawn ones and their logprobs too."""
    prompt = prompt_of(60, 199, seed=50)
    params = {"temperature": 1.0, "max_new_tokens": LENGTH, "ignore_eos": True} | sampling
    body = {"input_ids": prompt, "sampling_params": params, "return_logprob": True}
    undisturbed = cluster.http.post("/generate", json=body).json()
    killed = ""
    update = {}
    with cluster.http.stream("POST", "/generate", json=body | {"stream": True}) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            update = json.loads(line.removeprefix("data: "))
            if not killed and len(update["output_ids"]) >= 3:
                killed = update["meta_info"]["decode_node"]
                cluster.kill(killed)
    assert update["output_ids"] == undisturbed["output_ids"]
    assert len(update["output_ids"]) >= 490
    entries = [u["meta_info"]["output_token_logprobs"] for u in (update, undisturbed)]
    assert [entry[1] for entry in entries[0]] == update["output_ids"]
    for here, there in zip(*entries, strict=True):
        assert here[0] == pytest.approx(there[0], abs=1e-3)
    assert update["meta_info"]["attempts"] == 2
    assert update["meta_info"]["decode_node"] != killed


def test_dead_prefill_nodes_are_replaced_at_last_by_decode_itself(
    cluster: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    for seed, victim in enumerate(("p0", "p1")):
        cluster.kill(victim)
        # Sent before anybody has noticed: the route may still name the dead node.
        prompt = prompt_of(100, 199, seed=60 + seed)
        answer = cluster.generate(prompt)
        assert answer["output_ids"] == reference_tokens(random_model[1], prompt, 8)
        assert answer["meta_info"]["prefill_node"] != victim
    assert answer["meta_info"]["prefill_node"] is None


def test_prefill_nodes_answer_when_no_decode_node_is_left(
    cluster: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    """The last decode nodes die in the middle of a stream, which goes on with the same tokens."""
    prompt = prompt_of(60, 199, seed=70)
    params = {"temperature": 0.0, "max_new_tokens": LENGTH, "ignore_eos": True}
    body = {"input_ids": prompt, "sampling_params": params, "stream": True}
    are_killed = False
    update = {}
    with cluster.http.stream("POST", "/generate", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            update = json.loads(line.removeprefix("data: "))
            if not are_killed and len(update["output_ids"]) >= 3:
                are_killed = True
                for name in ("d0", "d1"):
                    cluster.kill(name)
    assert update["output_ids"] == reference_tokens(random_model[1], prompt, LENGTH)
    assert update["meta_info"]["decode_node"] in ("p0", "p1")
    assert update["meta_info"]["prefill_node"] is None


def test_too_many_requests_are_429_and_while_no_node_is_there_requests_wait(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> None:
    limits = {"max_running_requests": "1", "lease_s": "1.0"}
    most = {"max_queued_requests": "2"}
    cluster = start_cluster(tmp_path_factory, random_model[0], 0, 1, most, **limits)
    try:
        params = {"max_new_tokens": 1000, "ignore_eos": True}
        body = {"text": "abc", "stream": True, "sampling_params": params}
        with ExitStack() as open_streams:
            for _ in range(2):
                stream = cluster.http.stream("POST", "/generate", json=body)
                assert open_streams.enter_context(stream).status_code == 200
            refused = cluster.http.post("/generate", json=body)
            assert refused.status_code == 429 and refused.headers["Retry-After"]
            assert "2 requests are unfinished" in refused.json()["error"]["message"]
            batch = {"text": ["a", "b", "c"], "sampling_params": params}
            too_many = cluster.http.post("/generate", json=batch)
            assert too_many.status_code == 400
            assert "at most 2 at once" in too_many.json()["error"]["message"]
        cluster.settle()
        cluster.kill("d0")
        wait_until(lambda: not cluster.nodes(), "the loss of the node")
        assert cluster.http.get("/ready").status_code == 200, "a restart is no outage"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(cluster.generate, "abc")
            cluster.local.start_node("decode", "d0")
            assert len(waiting.result()["output_ids"]) == 8
    finally:
        cluster.local.stop()


def test_a_restarted_node_serves_again_with_a_clean_record(cluster: Cluster) -> None:
    cluster.generate(prompt_of(100, 199, seed=70))
    before = cluster.nodes()
    cluster.admin.drain("p1")
    cluster.admin.drain("d1", keep=True)
    for name in before:
        cluster.kill(name)
    cluster.restart_killed_nodes()
    now = cluster.nodes()
    wait_until(lambda: cluster.nodes()["d1"]["draining"], "the drain that is kept")
    assert not cluster.nodes()["p1"]["draining"], "that was the process before"
    cluster.admin.undrain("d1")
    assert now.keys() == before.keys() == {"p0", "p1", "d0", "d1"}
    assert all(now[name]["incarnation"] > before[name]["incarnation"] for name in before)
    answer = cluster.generate(prompt_of(100, 199, seed=70))
    assert answer["meta_info"]["cached_tokens"] == 0
    cluster.wait_until_idle()


def test_serving_goes_on_without_redis_and_all_is_published_again(cluster: Cluster) -> None:
    prompt = prompt_of(100, 199, seed=80)
    cluster.generate(prompt)

    def stats() -> dict[str, object]:
        return dict(cluster.http.get("/admin/cache/stats").json()["cluster"])

    wait_until(lambda: stats()["unique_owned_pages"] == 6, "ownership")
    cluster.kill("redis")
    wait_until(lambda: not stats()["redis_connected"], "the loss of Redis")
    again = cluster.generate(prompt)
    assert again["meta_info"]["cached_tokens"] >= 96, "the mirror was forgotten"
    cluster.generate(prompt_of(100, 199, seed=81))
    cluster.restart_redis()
    wait_until(lambda: stats()["redis_connected"], "the return of Redis")
    wait_until(lambda: stats()["unique_owned_pages"] == 12, "everything being published again")


@pytest.mark.verify
def test_nodes_that_are_told_to_stop_end_their_streams_first(cluster: Cluster) -> None:
    prompts = [prompt_of(60, 199, seed=70 + i) for i in range(4)]
    params = {"temperature": 0.0, "max_new_tokens": LENGTH, "ignore_eos": True}
    running = threading.Barrier(len(prompts) + 1)
    answering: set[str] = set()

    def stream(prompt: list[int]) -> dict[str, Any]:
        body = {"input_ids": prompt, "sampling_params": params, "stream": True}
        with cluster.http.stream("POST", "/generate", json=body) as response:
            events = (line for line in response.iter_lines() if line.startswith("data: {"))
            answering.add(meta_of(next(events))["decode_node"])
            running.wait(DEADLINE_S)
            *_, last = events
        return meta_of(last)

    with ThreadPoolExecutor(len(prompts)) as pool:
        streams = [pool.submit(stream, prompt) for prompt in prompts]
        running.wait(DEADLINE_S)
        leaving = [cluster.local.children[name] for name in ("p0", min(answering))]
        for child in leaving:
            child.terminate()
        ended = [one.result() for one in streams]
    for child in leaving:
        child.wait(DEADLINE_S)
        assert child.process.returncode == 0, child.last_lines
        assert child.name not in cluster.nodes(), "it has said goodbye"
    assert [(meta["attempts"], meta["completion_tokens"]) for meta in ended] == [(1, LENGTH)] * 4


def meta_of(event: str) -> dict[str, Any]:
    return dict(json.loads(event.removeprefix("data: "))["meta_info"])


@pytest.mark.verify
def test_a_node_that_is_told_to_stop_twice_or_while_it_starts_ends_at_once(
    cluster: Cluster,
) -> None:
    params = {"temperature": 0.0, "max_new_tokens": LENGTH, "ignore_eos": True}
    body = {"input_ids": prompt_of(60, 199, seed=80), "sampling_params": params, "stream": True}
    with cluster.http.stream("POST", "/generate", json=body) as response:
        events = (line for line in response.iter_lines() if line.startswith("data: {"))
        child = cluster.local.children[meta_of(next(events))["decode_node"]]
        child.terminate()
        wait_until(lambda: "told to stop" in " ".join(child.last_lines), "the first signal")
        child.terminate()
        *_, last = events
    assert meta_of(last)["attempts"] == 2, "the stream has gone on elsewhere"
    child.wait(DEADLINE_S)
    assert child.process.returncode == 0, child.last_lines
    starting = cluster.local.start_planned_node(child.name)
    wait_until(lambda: "node settings" in " ".join(starting.last_lines), "the start")
    starting.terminate()
    starting.wait(DEADLINE_S)
    assert starting.process.returncode == 0, starting.last_lines
