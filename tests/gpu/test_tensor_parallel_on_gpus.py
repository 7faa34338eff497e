"""Two ranks on two GPUs, which reduce over NCCL, eagerly and within recorded steps."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import Cluster, save_servable_model, start_cluster, wait_until

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices"),
]
SIZES = {"p1": 1, "p2": 2, "d1": 1, "d2": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    path = tmp_path_factory.mktemp("model")
    return path, save_servable_model("llama3", path)


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    """All first ranks share one GPU, all second ranks the other one: pages travel over NCCL between
    the GPUs, else through shared memory."""
    flags = {"dtype": "float32", "max_total_tokens": "16384", "device": "cuda:0"}
    cluster = start_cluster(tmp_path_factory, model[0], 0, 0, **flags)
    try:
        for name, size in SIZES.items():
            role = "prefill" if name[0] == "p" else "decode"
            cluster.local.start_node(role, name, {"tensor_parallel_size": str(size)})
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


@pytest.mark.parametrize(("prefill", "decode"), [("p1", "d2"), ("p2", "d1"), ("p2", "d2")])
def test_tokens_are_those_of_transformers(
    cluster: Cluster, model: tuple[Path, PreTrainedModel], prefill: str, decode: str
) -> None:
    use(cluster, prefill, decode)
    cluster.flush()
    for length in (1, 17, 100, 3000):
        prompt = prompt_of(length, 199)
        answer = cluster.generate(prompt)
        assert answer["output_ids"] == reference_tokens(model[1], prompt, 8)
        assert answer["meta_info"]["transferred_pages"] == -(-length // 16)
    cluster.wait_until_idle()


def test_a_lost_rank_ends_its_node(cluster: Cluster, model: tuple[Path, PreTrainedModel]) -> None:
    """The node ends although rank 0 may wait on the device for a collective operation that never
    ends."""
    log = (cluster.local.log_dir / "d2.log").read_text(encoding="utf-8")
    found = re.search(r"rank 1 of d2@\d+ is process (\d+)", log)
    assert found is not None
    os.kill(int(found[1]), signal.SIGKILL)
    process = cluster.local.children["d2"].process
    wait_until(lambda: process.poll() is not None, "the end of the node")
    assert process.returncode != 0
    use(cluster, "p2", "d1")
    prompt = prompt_of(50, 199, seed=1)
    assert cluster.generate(prompt)["output_ids"] == reference_tokens(model[1], prompt, 8)
