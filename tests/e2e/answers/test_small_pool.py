"""Answers that exceed a decode node's pages together: some give way, and nobody sees it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.support.engine.driving import prompt_of
from tests.support.processes.clusters import Cluster, start_cluster, wait_until

NUM_NEW = 150


@pytest.fixture(scope="module")
def small_cluster(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    cluster = start_cluster(tmp_path_factory, random_model[0], 1, 1, max_total_tokens="512")
    yield cluster
    cluster.local.stop()


def test_tokens_are_those_of_a_large_pool(pair_cluster: Cluster, small_cluster: Cluster) -> None:
    """Greedy and sampled answers run together; twelve of them want four times the pages that there
    are."""
    prompts = [prompt_of(10 + i, 199, seed=20 + i) for i in range(12)]

    def answers(cluster: Cluster) -> list[dict[str, object]]:
        def one(i: int) -> dict[str, object]:
            temperature = 0.0 if i % 2 else 1.0
            return cluster.generate(
                prompts[i], max_new_tokens=NUM_NEW, temperature=temperature, sampling_seed=i
            )

        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(one, range(len(prompts))))

    small, large = answers(small_cluster), answers(pair_cluster)
    assert [a["output_ids"] for a in small] == [a["output_ids"] for a in large]
    assert all(a["meta_info"]["cached_tokens"] == 0 for a in small)  # type: ignore[index]
    small_cluster.settle()
    assert small_cluster.counted("preemptions") > 0
    assert small_cluster.counted("generated_tokens") >= len(prompts) * NUM_NEW
    small_cluster.wait_until_idle()


def test_answers_that_may_fill_the_pool_run_side_by_side(small_cluster: Cluster) -> None:
    """Each may take 31 of the 32 pages, and stops after about a hundred tokens."""
    prompts = [prompt_of(10, 199, seed=40 + i) for i in range(6)]

    def one(i: int) -> dict[str, object]:
        return small_cluster.generate(
            prompts[i],
            max_new_tokens=480,
            min_new_tokens=100,
            stop_token_ids=list(range(100, 199)),
            ignore_eos=False,
            temperature=1.0,
            sampling_seed=i,
        )

    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = pool.map(one, range(len(prompts)))
        wait_until(lambda: small_cluster.nodes()["d0"]["load"]["num_running"] > 1, "company")
        for answer in answers:
            meta = answer["meta_info"]
            assert meta["finish_reason"]["type"] == "stop"  # type: ignore[index]
            assert 100 < meta["completion_tokens"] < 150  # type: ignore[index]
    small_cluster.wait_until_idle()
