"""Clusters on GPUs: a prefill and a decode node with pages between them over NCCL or over gloo, and
every layout that the benchmark measures on as many GPUs as there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.serving.systems.layouts import Layout, default_layouts
from benchmarks.serving.systems.ours import ClusterSettings, plan_of
from infra.cluster import LocalCluster
from infra.gpus.visible import num_visible_gpus
from infra.ports import free_port
from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import Cluster, save_servable_model, start_cluster, wait_until
from tests.support.processes.forked import start_forked

pytestmark = pytest.mark.gpu
LAYOUTS = tuple(
    name for name in default_layouts(torch.cuda.device_count() or 1) if name[:3] != "tp4"
)
"""Of those with ranks, the small model can be split in two only."""
LENGTHS = (1, 17, 300, 3000, 40, 700)
BACKENDS = {"nccl": {"p0": "cuda:0", "d0": "cuda:1"}, "gloo": {"p0": "cuda:0", "d0": "cuda:0"}}


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_launcher_counts_the_devices_that_torch_sees() -> None:
    assert num_visible_gpus(os.environ) == torch.cuda.device_count()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_tokens_of_transformers(
    name: str, tmp_path: Path, model: tuple[Path, PreTrainedModel]
) -> None:
    """All at once, so that nodes have prompts and answers in one step where their policy lets them.
    The second time, prompts are cached on some node."""
    num_gpus = torch.cuda.device_count()
    layout = Layout.parse(name, num_gpus)
    flags = {"dtype": "float32", "max_total_tokens": "32768"}
    settings = ClusterSettings(model[0], num_gpus, flags, tmp_path)
    plan = plan_of(layout, settings, free_port())
    prompts = [prompt_of(length, 199, seed=length) for length in LENGTHS]
    expected = [reference_tokens(model[1], prompt, 8) for prompt in prompts]
    with LocalCluster(plan, tmp_path, start=start_forked) as local:
        cluster = Cluster(local)
        devices = {node["device"] for node in cluster.nodes().values()}
        if sum(layout.sizes.values()) <= num_gpus:
            assert len(devices) == len(layout.sizes), "each node has a GPU of its own"
        for _ in range(2):
            with ThreadPoolExecutor(len(prompts)) as clients:
                answers = list(clients.map(cluster.generate, prompts))
            assert [answer["output_ids"] for answer in answers] == expected
        cluster.wait_until_idle()
        assert cluster.counted("compiles_while_serving") == 0
        assert cluster.total("num_running") == 0
