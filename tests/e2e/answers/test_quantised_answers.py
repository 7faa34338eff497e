"""Clusters with quantised checkpoints answer with the tokens that the formats define: through
prefill, pages and decode, on hits, and when a decode node dies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.models.quantised import answers, checkpoint
from tests.support.processes.clusters import Cluster, save_tokenizer, start_cluster

pytestmark = pytest.mark.verify

VOCAB_SIZE = 96
LENGTH = 1200
"""Tokens of an answer that must still come when its node is killed, however late the test reads."""


@pytest.fixture(
    scope="module", params=["awq-llama", "fp8-block-qwen3-moe", "gguf-k-llama", "gptq-order-llama"]
)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Cluster]:
    path: Path = tmp_path_factory.mktemp("models") / name
    shutil.copytree(checkpoint(name), path)
    if not name.startswith("gguf-"):  # which has its own
        save_tokenizer(path, VOCAB_SIZE)
    cluster = start_cluster(
        tmp_path_factory,
        path,
        1,
        2,
        dtype="float32",
        chunked_prefill_size="16",
        max_total_tokens="8192",
        lease_s="1.0",
    )
    yield cluster
    cluster.local.stop()


def test_tokens_are_as_defined_and_again_on_a_hit(cluster: Cluster, name: str) -> None:
    """A prompt is computed and sent in chunks of 16 tokens."""
    for expected in answers(name):
        for num_cached in (0, len(expected.prompt) - 1):
            answer = cluster.generate(expected.prompt, max_new_tokens=len(expected.tokens))
            assert answer["output_ids"] == expected.tokens
            assert answer["meta_info"]["prefill_node"] == "p0"
            assert answer["meta_info"]["cached_tokens"] == num_cached


def test_a_retry_has_the_same_tokens(cluster: Cluster, name: str) -> None:
    expected = answers(name)[-1]
    body = {
        "input_ids": expected.prompt,
        "sampling_params": {"temperature": 0.0, "max_new_tokens": LENGTH, "ignore_eos": True},
    }
    undisturbed = cluster.http.post("/generate", json=body).json()
    last: dict[str, Any] = {}
    killed = ""
    with cluster.http.stream("POST", "/generate", json=body | {"stream": True}) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            last = json.loads(line.removeprefix("data: "))
            if not killed and last["output_ids"]:
                killed = last["meta_info"]["decode_node"]
                cluster.kill(killed)
    assert last["meta_info"]["attempts"] == 2
    assert last["output_ids"] == undisturbed["output_ids"]
    assert last["output_ids"][: len(expected.tokens)] == expected.tokens


def test_two_ranks_that_round_inputs_together_answer_as_one(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """In FP8 with a scale for each token, of which each rank has some inputs."""
    name = "ct-fp8-dynamic-qwen3"
    path: Path = tmp_path_factory.mktemp("models") / name
    shutil.copytree(checkpoint(name), path)
    save_tokenizer(path, VOCAB_SIZE)
    flags = {"dtype": "float32", "max_total_tokens": "8192", "tensor_parallel_size": "2"}
    cluster = start_cluster(tmp_path_factory, path, 1, 1, **flags)
    try:
        for expected in answers(name):
            answer = cluster.generate(expected.prompt, max_new_tokens=len(expected.tokens))
            assert answer["output_ids"] == expected.tokens
    finally:
        cluster.local.stop()
