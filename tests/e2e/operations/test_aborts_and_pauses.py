"""What ends or holds requests, heard by one of two coordinators, and felt at both."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import body_of, start_cluster, wait_until
from tests.support.processes.coordinators import Pair

LONG = 3_000
"""Tokens of an answer that does not end by itself while a test looks."""
BOTH = (0, 1)


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Pair]:
    """One prefill and one decode node, and two coordinators."""
    stall = {"stall_client_s": "1"}
    cluster = start_cluster(
        tmp_path_factory, random_model[0], 1, 1, stall, max_total_tokens="32768"
    )
    try:
        yield Pair(cluster, random_model)
    finally:
        cluster.local.stop()


@pytest.fixture(autouse=True)
def generating(pair: Pair) -> Iterator[None]:
    """However a test ends, the cluster generates, and holds nothing."""
    yield
    assert pair.post(0, "/continue_generation", {}).status_code == 200
    pair.cluster.settle()


def prompt(seed: int) -> list[int]:
    return prompt_of(30, 199, seed=400 + seed)


def body(seed: int, rid: str, count: int = LONG) -> dict[str, Any]:
    return body_of(prompt(seed), max_new_tokens=count) | {"rid": rid}


def is_abort(answer: dict[str, Any]) -> bool:
    reason = answer["meta_info"]["finish_reason"]
    return bool(reason["type"] == "abort") and reason["message"] == "Aborted"


def test_an_abort_heard_at_the_other_coordinator_ends_a_stream_with_its_text(pair: Pair) -> None:
    with pair.stream(0, body(1, "streamed")) as events:
        next(events)
        assert pair.post(1, "/abort_request", {"rid": "streamed"}).status_code == 200
        last = list(events)[-1]
    assert is_abort(last)
    num_tokens = len(last["output_ids"])
    assert 0 < num_tokens < LONG
    assert last["output_ids"] == reference_tokens(pair.reference, prompt(1), num_tokens)


def test_an_abort_ends_all_answers_of_a_batch_with_what_they_have(pair: Pair) -> None:
    batch = body(2, "batch") | {"input_ids": [prompt(2), prompt(3)]}
    batch["sampling_params"] |= {"n": 2}
    with ThreadPoolExecutor() as pool:
        reply = pool.submit(pair.post, 1, "/generate", batch)
        neighbour = pool.submit(pair.post, 1, "/generate", body(4, "batch-2", 200))
        wait_until(lambda: pair.cluster.total("num_running") >= 4, "four answers")
        assert pair.post(0, "/abort_request", {"rid": "batch"}).status_code == 200
        answers = reply.result().json()
        assert reply.result().status_code == 200
        assert [a["meta_info"]["id"] for a in answers] == [
            f"batch_{i}_{j}" for i in BOTH for j in BOTH
        ]
        assert all(map(is_abort, answers))
        assert len(neighbour.result().json()["output_ids"]) == 200


def test_requests_that_nobody_wants_leave_nothing_at_any_node(pair: Pair) -> None:
    """Some clients leave, others abort; prompts are computed and sent, and answers go on."""
    asked = [body(seed, f"unwanted-{seed}") for seed in range(50, 58)]
    for number, one in enumerate(asked):
        one["input_ids"] = prompt_of(30 if number % 2 else 900, 199, seed=number)
    with ExitStack() as open_streams:
        for one in asked:
            open_streams.enter_context(pair.stream(0, one))
        wait_until(lambda: pair.cluster.total("num_running") >= 4, "answers")
        for one in asked[:4]:
            assert pair.post(1, "/abort_request", {"rid": one["rid"]}).status_code == 200
    pair.cluster.settle()


def test_a_client_that_does_not_read_costs_its_own_request_alone(pair: Pair) -> None:
    def num_stalled() -> int:
        return int(pair.cluster.stats()["stalled_clients"])

    before = num_stalled()
    port = int(pair.cluster.local.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as silent:
        content = json.dumps(body(60, "silent") | {"stream": True}).encode()
        head = f"POST /generate HTTP/1.1\r\nHost: here\r\nContent-Length: {len(content)}\r\n\r\n"
        silent.sendall(head.encode() + content)
        wait_until(lambda: pair.cluster.total("num_running"), "its answer")
        assert len(pair.generate(0, prompt(61))["output_ids"]) > 0
        wait_until(lambda: num_stalled() == before + 1, "the end of its patience")
        pair.cluster.settle()


def test_aborting_nobody_is_no_error(pair: Pair) -> None:
    for who in BOTH:
        for asked in ({"rid": "nobody"}, {}, {"rid": None, "abort_all": None}):
            assert pair.post(who, "/abort_request", asked).status_code == 200
    assert pair.post(0, "/abort_request", {"rid": 5}).status_code == 400


def test_all_requests_of_all_coordinators_are_aborted(pair: Pair) -> None:
    with ExitStack() as streams:
        all_events = [
            streams.enter_context(pair.stream(who, body(5 + who, f"all-{who}"))) for who in BOTH
        ]
        for events in all_events:
            next(events)
        assert pair.post(0, "/abort_request", {"abort_all": True}).status_code == 200
        assert all(is_abort(list(events)[-1]) for events in all_events)


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_answers_go_on_after_a_pause_with_the_very_same_tokens(pair: Pair, mode: str) -> None:
    count = 400
    with ExitStack() as streams, ThreadPoolExecutor() as pool:
        all_events = [
            streams.enter_context(pair.stream(who, body(10 + who, f"{mode}-{who}", count)))
            for who in BOTH
        ]
        shown = [next(events) for events in all_events]
        assert pair.post(1, "/pause_generation", {"mode": mode}).status_code == 200
        late = [pool.submit(pair.generate, who, prompt(20 + who)) for who in BOTH]
        pair.cluster.settle()  # nodes have nothing to do, though nothing has ended
        assert not any(one.done() for one in late)
        assert pair.cluster.http.get("/health").status_code == 200
        assert pair.second.http.get("/health_generate").status_code == 200
        assert pair.post(0, "/flush_cache", {}).status_code == 200
        assert pair.post(0, "/continue_generation", {}).status_code == 200
        retractions = []
        for who in BOTH:
            last = [shown[who], *all_events[who]][-1]
            right = reference_tokens(pair.reference, prompt(10 + who), count)
            assert last["output_ids"] == right
            assert last["meta_info"]["finish_reason"]["type"] == "length"
            retractions.append(last["meta_info"]["num_retractions"])
            answer = late[who].result()
            assert answer["output_ids"] == reference_tokens(pair.reference, prompt(20 + who), 8)
        # On a slow machine one may have ended while the test still asked for the other.
        assert max(retractions) == 1


def test_a_pause_in_sglangs_default_mode_aborts_what_runs(pair: Pair) -> None:
    with pair.stream(0, body(30, "paused")) as events, ThreadPoolExecutor() as pool:
        next(events)
        assert pair.post(1, "/pause_generation", {}).status_code == 200
        assert is_abort(list(events)[-1])
        late = pool.submit(pair.generate, 0, prompt(31))
        wait_until(lambda: num_waiting(pair, 1) == 1, "a request that waits")
        assert not late.done()
        waiting = pool.submit(pair.post, 1, "/generate", body(32, "waiting"))
        wait_until(lambda: num_waiting(pair, 1) == 2, "both requests waiting")
        pair.post(0, "/abort_request", {"rid": "waiting"})
        assert is_abort(waiting.result().json()) and waiting.result().json()["output_ids"] == []
        assert pair.post(1, "/continue_generation", {}).status_code == 200
        right = reference_tokens(pair.reference, prompt(31), 8)
        assert late.result()["output_ids"] == right


def test_a_pause_of_an_unknown_kind_is_refused(pair: Pair) -> None:
    refused = pair.post(0, "/pause_generation", {"mode": "slowly"})
    assert refused.status_code == 400 and "mode" in refused.json()["error"]["message"]
    assert pair.generate(1, prompt(33))["error"] is None


@pytest.mark.verify
def test_a_new_coordinator_and_an_empty_redis_keep_the_pause(pair: Pair) -> None:
    assert pair.post(0, "/pause_generation", {"mode": "retract"}).status_code == 200
    pair.cluster.kill("redis")
    pair.wait_until_connected(False)
    pair.cluster.restart_redis()
    pair.wait_until_connected(True)
    pair.restart_second()
    with ThreadPoolExecutor() as pool:
        late = pool.submit(pair.generate, 1, prompt(40))
        wait_until(lambda: num_waiting(pair, 1) == 1, "a request that waits")
        assert not late.done()
        assert pair.post(1, "/continue_generation", {}).status_code == 200
        assert late.result()["output_ids"] == reference_tokens(pair.reference, prompt(40), 8)


def num_waiting(pair: Pair, who: int) -> int:
    """Returns how many requests wait in the cluster, as one coordinator tells it."""
    http = (pair.cluster.http, pair.second.http)[who]
    return int(http.get("/v1/loads").json()["aggregate"]["total_waiting_reqs"])
