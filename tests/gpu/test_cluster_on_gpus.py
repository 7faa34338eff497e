"""A prefill and a decode node on GPUs, pages between them over NCCL or over TCP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import Cluster, save_servable_model, start_cluster, wait_until

pytestmark = pytest.mark.gpu
BACKENDS = {"nccl": {"p0": "cuda:0", "d0": "cuda:1"}, "tcp": {"p0": "cuda:0", "d0": "cuda:0"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    path = tmp_path_factory.mktemp("model")
    return path, save_servable_model("llama3", path)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    num_devices = len(set(BACKENDS[request.param].values()))
    if torch.cuda.device_count() < num_devices:
        pytest.skip(f"needs {num_devices} CUDA devices")
    return str(request.param)


def start(cluster: Cluster, backend: str, name: str) -> None:
    role = "prefill" if name == "p0" else "decode"
    cluster.local.start_node(role, name, {"device": BACKENDS[backend][name]})


@pytest.fixture
def cluster(
    tmp_path_factory: pytest.TempPathFactory, model: tuple[Path, PreTrainedModel], backend: str
) -> Iterator[Cluster]:
    flags = {"kv_backend": backend, "dtype": "float32", "max_total_tokens": "32768"}
    cluster = start_cluster(tmp_path_factory, model[0], 0, 0, **flags)
    try:
        for name in BACKENDS[backend]:
            start(cluster, backend, name)
        cluster.local.wait_for_nodes()
        yield cluster
    finally:
        cluster.local.stop()


def test_tokens_are_those_of_transformers_and_pairs_survive_a_restart(
    cluster: Cluster, model: tuple[Path, PreTrainedModel], backend: str
) -> None:
    for length in (1, 17, 100, 3000):
        prompt = prompt_of(length, 199)
        answer = cluster.generate(prompt)
        assert answer["output_ids"] == reference_tokens(model[1], prompt, 8)
        assert answer["meta_info"]["transferred_pages"] == -(-length // 16)
        hit = cluster.generate(prompt)
        assert hit["output_ids"] == answer["output_ids"]
        assert hit["meta_info"]["transferred_pages"] == 1
    before = cluster.nodes()["d0"]["incarnation"]
    cluster.local.children["d0"].process.kill()
    cluster.local.children["d0"].wait()
    start(cluster, backend, "d0")
    wait_until(
        lambda: cluster.nodes().get("d0", {}).get("incarnation", 0) > before, "a restarted node"
    )
    prompt = prompt_of(200, 199, seed=1)
    answer = cluster.generate(prompt)
    assert answer["output_ids"] == reference_tokens(model[1], prompt, 8)
    assert answer["meta_info"]["transferred_pages"] == 13
    cluster.wait_until_idle()


def test_pages_are_fetched_back(cluster: Cluster, model: tuple[Path, PreTrainedModel]) -> None:
    """Both directions of a pair: prefill has forgotten a prompt that decode still has. On a fast
    device the router may find that computing takes less time than fetching; it keeps to that."""
    prompt = prompt_of(3000, 199, seed=2)
    first = cluster.generate(prompt)
    cluster.settle()
    cluster.admin.flush(node="p0")
    wait_until(
        lambda: cluster.admin.cache_stats()["nodes"]["p0"]["owned_pages"] == 0, "an empty node"
    )
    source = cluster.admin.explain(prompt, max_new_tokens=8)["choice"]["fetch_from"]
    again = cluster.generate(prompt)
    assert again["output_ids"] == first["output_ids"] == reference_tokens(model[1], prompt, 8)
    assert again["meta_info"]["fetched_from"] == source
    assert again["meta_info"]["fetched_tokens"] == (2992 if source == "d0" else 0)
    assert again["meta_info"]["transferred_pages"] == 1
