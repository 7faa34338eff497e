"""Nodes of one, two and four ranks work together: tokens are those of transformers, and a lost
rank costs its node and nobody's answer.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import Cluster, body_of, start_cluster, wait_until
from tests.support.processes.scored_prompts import ASKED, check_meta, expected_logprobs

SIZES = (1, 2, 4)
PAIRS = [(1, 2), (2, 1), (2, 4), (4, 2)]
DRAWN = {"temperature": 1.0, "sampling_seed": 5, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    """A cluster of p1, p2, p4 and d1, d2, d4, with as many ranks each. The model has two KV heads,
    so four ranks hold each head twice."""
    flags = {"chunked_prefill_size": "256", "max_total_tokens": "16384"}
    cluster = start_cluster(tmp_path_factory, random_model[0], 0, 0, makes_secret=True, **flags)
    for role in ("prefill", "decode"):
        for size in SIZES:
            size_flags = {"tensor_parallel_size": str(size)}
            cluster.local.start_node(role, f"{role[0]}{size}", size_flags)
    try:
        cluster.local.wait_for_nodes()
        yield cluster
    finally:
        cluster.local.stop()


def use(cluster: Cluster, *names: str) -> None:
    """Lets only these nodes get requests."""
    for name in cluster.nodes():
        if name in names:
            cluster.admin.undrain(name)
        else:
            cluster.admin.drain(name)


def stream(cluster: Cluster, body: dict[str, Any], at: int = 0, do: Any = None) -> dict[str, Any]:
    """Returns the last update of a streamed answer. `do` is called once, when the answer has `at`
    tokens."""
    last: dict[str, Any] = {}
    with cluster.http.stream("POST", "/generate", json=body | {"stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                last = json.loads(line.removeprefix("data: "))
                if do is not None and len(last["output_ids"]) >= at:
                    do()
                    do = None
    return last


def rank_pid(cluster: Cluster, name: str, rank: int) -> int:
    log = (cluster.local.log_dir / f"{name}.log").read_text(encoding="utf-8")
    found = re.search(rf"rank {rank} of {name}@\d+ is process (\d+)", log)
    assert found is not None, log
    return int(found[1])


def exit_code(cluster: Cluster, name: str) -> int | None:
    return cluster.local.children[name].process.poll()


@pytest.mark.parametrize(("senders", "receivers"), PAIRS)
def test_tokens_do_not_depend_on_the_sizes(
    cluster: Cluster,
    random_model: tuple[Path, PreTrainedModel],
    senders: int,
    receivers: int,
) -> None:
    use(cluster, "p1", "d1")
    drawn_by_one = cluster.generate(prompt_of(60, 199, seed=90), **DRAWN)
    use(cluster, f"p{senders}", f"d{receivers}")
    cluster.flush()
    prompts = [prompt_of(length, 199, seed=91) for length in (1, 17, 333, 700)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(cluster.generate, prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer["output_ids"] == reference_tokens(random_model[1], prompt, 8)
        meta = answer["meta_info"]
        assert (meta["prefill_node"], meta["decode_node"]) == (f"p{senders}", f"d{receivers}")
    assert answers[-1]["meta_info"]["transferred_pages"] > 0
    drawn = cluster.generate(prompt_of(60, 199, seed=90), **DRAWN)
    assert drawn["output_ids"] == drawn_by_one["output_ids"]
    streamed = stream(cluster, body_of(prompts[2]))
    assert streamed["output_ids"] == answers[2]["output_ids"]
    assert streamed["meta_info"]["cached_tokens"] == 332
    cluster.wait_until_idle()


@pytest.mark.parametrize(("prefill", "decode"), [("p2", "d4"), ("p4", "d1")])
def test_pages_are_fetched_from_a_node_of_another_size(
    cluster: Cluster, random_model: tuple[Path, PreTrainedModel], prefill: str, decode: str
) -> None:
    use(cluster, prefill, decode)
    cluster.flush()
    prompt = prompt_of(2000, 199, seed=92)
    first = cluster.generate(prompt)
    cluster.forget(prefill)
    again = cluster.generate(prompt)
    assert again["meta_info"]["fetched_from"] == decode
    assert again["meta_info"]["fetched_tokens"] == 1999 // 16 * 16
    assert again["output_ids"] == first["output_ids"]
    assert again["output_ids"] == reference_tokens(random_model[1], prompt, 8)
    cluster.wait_until_idle()


@pytest.mark.parametrize("size", SIZES)
def test_logprobs_of_a_prompt_from_ranks_that_share_the_vocabulary(
    cluster: Cluster, random_model: tuple[Path, PreTrainedModel], size: int
) -> None:
    """In chunks, whose blocks of logits all ranks gather alike."""
    use(cluster, f"p{size}", "d1")
    prompt = prompt_of(300, 199, seed=170 + size)
    body = body_of(prompt) | ASKED | {"logprob_start_len": 20}
    response = cluster.http.post("/generate", json=body)
    assert response.status_code == 200, response.text
    meta = response.json()["meta_info"]
    assert meta["prefill_node"] == f"p{size}"
    check_meta(meta, prompt, expected_logprobs(random_model[1], prompt), 20)


def test_a_lost_rank_ends_its_node_and_the_stream_goes_on_elsewhere(cluster: Cluster) -> None:
    use(cluster, "p1", "d2")
    body = body_of(prompt_of(60, 199, seed=93), max_new_tokens=80)
    undisturbed = cluster.http.post("/generate", json=body).json()

    def kill() -> None:
        cluster.admin.undrain("d1")
        os.kill(rank_pid(cluster, "d2", 1), signal.SIGKILL)

    streamed = stream(cluster, body, 3, kill)
    assert streamed["output_ids"] == undisturbed["output_ids"]
    assert streamed["meta_info"]["attempts"] == 2
    assert streamed["meta_info"]["decode_node"] == "d1"
    assert wait_until(lambda: exit_code(cluster, "d2"), "the end of the node") == 1
    log = (cluster.local.log_dir / "d2.log").read_text(encoding="utf-8")
    assert "cannot go on and ends: rank 1 of 2 is lost" in log


def test_an_idle_node_that_loses_a_rank_ends_too(cluster: Cluster) -> None:
    use(cluster, "p1", "d1")
    ranks = [rank_pid(cluster, "p4", rank) for rank in (1, 2, 3)]
    os.kill(ranks[0], signal.SIGSTOP)  # does not end by itself
    os.kill(ranks[2], signal.SIGKILL)
    assert wait_until(lambda: exit_code(cluster, "p4"), "the end of the node") == 1
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()], "ranks were left behind"


def test_ranks_end_with_the_one_that_schedules(cluster: Cluster) -> None:
    ranks = [rank_pid(cluster, "d4", rank) for rank in (1, 2, 3)]
    cluster.local.children["d4"].process.kill()
    wait_until(
        lambda: not [pid for pid in ranks if Path(f"/proc/{pid}").exists()], "the end of all ranks"
    )


@pytest.mark.verify
def test_all_ranks_end_with_a_node_that_is_told_to_stop(cluster: Cluster) -> None:
    """Every process of it is told, as systemd does."""
    child, rank = cluster.local.children["p2"], rank_pid(cluster, "p2", 1)
    os.killpg(child.process.pid, signal.SIGTERM)
    assert wait_until(lambda: exit_code(cluster, "p2") == 0, "the end of the node")
    wait_until(lambda: not Path(f"/proc/{rank}").exists(), "the end of its ranks")
