"""Under load nothing is lost: every request ends, every page comes back, memory stays flat."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.support.engine.driving import prompt_of
from tests.support.processes.clusters import Cluster, wait_until


def test_200_concurrent_requests_all_finish(pair_cluster: Cluster) -> None:
    chance = random.Random(1)
    requests = [
        (prompt_of(chance.choice([1, 7, 30, 120, 500, 900]), 199, seed=i), chance.randint(1, 24))
        for i in range(200)
    ]
    with ThreadPoolExecutor(200) as pool:
        answers = list(
            pool.map(lambda r: pair_cluster.generate(r[0], max_new_tokens=r[1]), requests)
        )
    for (_, wanted), answer in zip(requests, answers, strict=True):
        assert len(answer["output_ids"]) == wanted
        assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": wanted}
    pair_cluster.wait_until_idle()


@pytest.mark.verify
def test_memory_is_flat_over_2000_requests(pair_cluster: Cluster) -> None:
    chance = random.Random(2)

    def one(i: int) -> None:
        pair_cluster.generate(prompt_of(chance.randint(1, 60), 199, seed=i), max_new_tokens=2)

    def resident() -> dict[str, int]:
        pair_cluster.settle()
        children = pair_cluster.local.children
        return {
            name: psutil.Process(c.process.pid).memory_info().rss for name, c in children.items()
        }

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(500)))
        early = resident()
        list(pool.map(one, range(500, 2500)))
        late = resident()
    for name in early:
        assert late[name] - early[name] < 16 << 20, (
            f"{name} grew from {early[name]} to {late[name]}"
        )
    pair_cluster.wait_until_idle()


def test_a_client_that_leaves_frees_its_pages_on_both_nodes(pair_cluster: Cluster) -> None:
    pair_cluster.settle()
    body = {
        "input_ids": prompt_of(900, 199, seed=77),
        "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True},
        "stream": True,
    }
    with httpx.stream("POST", f"{pair_cluster.local.url}/generate", json=body) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: {")
        wait_until(lambda: pair_cluster.total("held_pages") > 0, "held pages")
    pair_cluster.wait_until_idle()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_during_prefill_frees_its_pages(
    pair_cluster: Cluster, stream: bool
) -> None:
    pair_cluster.settle()
    params = {"max_new_tokens": 500, "ignore_eos": True}
    prompt = prompt_of(3500, 199, seed=78 + stream)
    body = {"input_ids": prompt, "sampling_params": params, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{pair_cluster.local.url}/generate", json=body, timeout=0.05)
    pair_cluster.wait_until_idle()
