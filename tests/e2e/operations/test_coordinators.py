"""Two coordinators of one cluster: each knows what the other did, and none is missed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import PreTrainedModel

from kvrelay.client import Client
from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import body_of, start_cluster, wait_until
from tests.support.processes.coordinators import (
    NUM_STREAMS,
    Coordinator,
    Pair,
    restart_under_streams,
)
from tests.support.processes.ready_proxies import haproxy, haproxy_program, tiny_proxy

ANSWER_LENGTHS = (100, 300, 1500, 2500)
"""Some have ended when the lease of their coordinator ends, some have not."""
NOBODYS, NOBODYS_LENGTH = 6, 4000


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Pair]:
    """One prefill and one decode node, and two coordinators."""
    cluster = start_cluster(
        tmp_path_factory, random_model[0], 1, 1, makes_secret=True, max_total_tokens="32768"
    )
    try:
        yield Pair(cluster, random_model)
    finally:
        cluster.local.stop()


def test_each_serves_and_learns_what_the_other_had_computed(pair: Pair) -> None:
    prompts = [prompt_of(100, 199, seed=300 + who) for who in (0, 1)]
    for who in (0, 1):
        answer = pair.generate(who, prompts[who])
        assert answer["meta_info"]["cached_tokens"] == 0
        assert answer["output_ids"] == reference_tokens(pair.reference, prompts[who], 8)
    pair.wait_until_both_own((12, 12))
    for who in (0, 1):
        explained = pair.admins[who].explain(prompts[1 - who])
        assert {c["owned_pages"] for c in explained["candidates"]["prefill"]} == {6}
        assert pair.generate(who, prompts[1 - who])["meta_info"]["cached_tokens"] == 99


def test_a_node_is_drained_for_both(pair: Pair) -> None:
    first, second = pair.admins
    second.drain("p0")
    wait_until(lambda: first.cache_stats()["nodes"]["p0"]["draining"], "the drain at the first")
    for who in (0, 1):
        meta = pair.generate(who, prompt_of(50, 199, seed=310 + who))["meta_info"]
        assert meta["prefill_node"] is None
    first.undrain("p0")
    wait_until(lambda: not second.cache_stats()["nodes"]["p0"]["draining"], "the end of it")
    for who in (0, 1):
        meta = pair.generate(who, prompt_of(50, 199, seed=312 + who))["meta_info"]
        assert meta["prefill_node"] == "p0"


def test_one_is_killed_and_a_new_one_comes_up_warm(pair: Pair) -> None:
    prompt = prompt_of(120, 199, seed=320)
    pair.generate(0, prompt)
    pair.cluster.settle()
    pair.second.kill()
    assert pair.generate(0, prompt)["meta_info"]["cached_tokens"] == 119
    pair.cluster.settle()
    audit = pair.cluster.admin.audit(repair=False)
    assert audit["clean"]
    owned = pair.owned(pair.cluster.admin)
    assert sum(owned) == sum(node["pages"] for node in audit["nodes"].values())
    num_requests = pair.cluster.stats()["requests"]
    pair.second = Coordinator(pair.cluster, pair.model_path, "coordinator-2")
    pair.wait_until_both_own(owned)
    wait_until(lambda: pair.second.admin.cache_stats()["cluster"]["coordinators"] == 2, "both")
    stats = pair.second.admin.cache_stats()["cluster"]
    assert stats["requests"] == num_requests, "warm without a request"
    assert pair.generate(1, prompt)["meta_info"]["cached_tokens"] == 119


@pytest.mark.verify
def test_coordinators_restart_and_no_stream_fails(pair: Pair) -> None:
    with tiny_proxy(pair.ports) as url:
        assert restart_under_streams(pair, url, pair.roll_coordinators) > NUM_STREAMS


def test_a_coordinator_is_killed_and_its_streams_go_on(pair: Pair) -> None:
    """As kvrelay's client sees it: no error, and no token twice or missing. What nobody comes back
    for is given up when the coordinator's lease has ended."""
    prompts = [prompt_of(40, 199, seed=430 + i) for i in range(len(ANSWER_LENGTHS))]
    have_begun = threading.Barrier(len(prompts) + 1)

    def follow(who: int) -> list[tuple[int, ...]]:
        with Client(pair.second.url) as client:
            length = ANSWER_LENGTHS[who]
            params = {"max_new_tokens": length, "temperature": 0, "ignore_eos": True}
            updates = client.stream(prompts[who], **params)
            seen = [next(updates).output_ids]
            have_begun.wait(60)
            return seen + [update.output_ids for update in updates]

    # Several answers with logprobs take longer than a lease, however fast the machine is.
    nobodys = body_of(prompt_of(40, 199, seed=440), max_new_tokens=NOBODYS_LENGTH, n=NOBODYS)
    nobodys |= {"return_logprob": True, "top_logprobs_num": 50}
    before = pair.cluster.counted("generated_tokens")
    with ThreadPoolExecutor(len(prompts) + 1) as pool:
        nobody = pool.submit(pair.second.http.post, "/generate", json=nobodys)
        streams = [pool.submit(follow, who) for who in range(len(prompts))]
        have_begun.wait(60)
        pair.second.kill()
        assert isinstance(nobody.exception(), httpx.HTTPError)
        pair.cluster.wait_until_idle()
        num_generated = pair.cluster.counted("generated_tokens") - before
        assert num_generated < NOBODYS * NOBODYS_LENGTH, "they were not answered to their end"
        pair.second = Coordinator(pair.cluster, pair.model_path, "coordinator-2", pair.second.port)
        answers = [stream.result() for stream in streams]
    for prompt, length, seen in zip(prompts, ANSWER_LENGTHS, answers, strict=True):
        body = body_of(prompt, max_new_tokens=length)
        assert list(seen[-1]) == pair.post(0, "/generate", body).json()["output_ids"]
        numbers = [len(ids) for ids in seen]
        assert numbers == sorted(set(numbers)), "no update came twice"


@pytest.mark.verify
@pytest.mark.skipif(haproxy_program() is None, reason="needs Debian's package haproxy")
def test_every_process_restarts_behind_haproxy_and_no_stream_fails(
    pair: Pair, tmp_path: Path
) -> None:
    def restart() -> None:
        pair.roll_coordinators()
        pair.roll_nodes()

    with haproxy(pair.ports, tmp_path) as url:
        assert restart_under_streams(pair, url, restart) > NUM_STREAMS


def test_a_redis_that_hangs_holds_nobody_up(pair: Pair) -> None:
    pair.cluster.settle()
    redis = pair.cluster.local.children["redis"].process
    prompt = prompt_of(100, 199, seed=330)
    before = pair.owned(pair.cluster.admin)
    redis.send_signal(signal.SIGSTOP)
    try:
        for who in (0, 1):
            for seed in (330, 331 + who):
                answer = pair.generate(who, prompt_of(100, 199, seed=seed))
                assert answer["error"] is None and answer["meta_info"]["attempts"] == 1
        pair.wait_until_connected(False)
        for who in (0, 1):
            assert pair.generate(who, prompt)["meta_info"]["cached_tokens"] == 99
        assert pair.owned(pair.cluster.admin) == before, "nobody could tell"
    finally:
        redis.send_signal(signal.SIGCONT)
    pair.wait_until_connected(True)
    pair.wait_until_both_own((before[0] + 18, before[1] + 18))
    for admin in pair.admins:
        wait_until(lambda a=admin: a.audit(repair=False)["clean"], "a true record")  # type: ignore[misc]


def test_a_redis_that_dies_and_comes_back_empty_fails_no_request(pair: Pair) -> None:
    pair.cluster.settle()
    before = pair.owned(pair.cluster.admin)
    prompts = [prompt_of(60, 199, seed=340 + i) for i in range(24)]
    whose = cycle((0, 1))
    with ThreadPoolExecutor(4) as pool:

        def start(some: list[list[int]]) -> list[Future[dict[str, Any]]]:
            return [pool.submit(pair.generate, next(whose), prompt) for prompt in some]

        answers = start(prompts[:8])
        pair.cluster.kill("redis")
        answers += start(prompts[8:16])
        pair.wait_until_connected(False)
        pair.cluster.restart_redis()
        answers += start(prompts[16:])
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.result()["output_ids"] == reference_tokens(pair.reference, prompt, 8)
            assert answer.result()["meta_info"]["attempts"] == 1
    pair.wait_until_connected(True)
    num_new = 3 * len(prompts)  # pages of a prompt that are full
    pair.wait_until_both_own((before[0] + num_new + len(prompts), before[1] + num_new))
    for admin in pair.admins:
        wait_until(lambda a=admin: a.audit(repair=False)["clean"], "a true record")  # type: ignore[misc]
