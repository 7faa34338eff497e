"""A cluster with FP8 pages answers as one engine with such pages does: on a hit, in chunks, with
pages from elsewhere, and after a prefill node was lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from engine.build import load_model_runner
from engine.options import EngineOptions
from protocol.layout import FP8, KVLayout
from tests.support.engine.driving import CPU, PAGE_SIZE, Sequences, prompt_of
from tests.support.processes.clusters import Cluster, start_cluster, wait_until

pytestmark = pytest.mark.verify
NUM_TOKENS = 8


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    """Two prefill nodes and one decode node, as if each were on a host of its own."""
    cluster = start_cluster(
        tmp_path_factory,
        random_model[0],
        2,
        1,
        kv_backend="tcp",
        kv_cache_dtype="fp8_e4m3",
        dtype="float32",
        chunked_prefill_size="64",
        max_total_tokens="16384",
        lease_s="1.0",
    )
    yield cluster
    cluster.local.stop()


def test_tokens_are_those_of_one_engine(
    cluster: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    options = EngineOptions("float32", PAGE_SIZE, kv_cache_dtype="fp8_e4m3")
    alone = load_model_runner(random_model[0], options, lambda _: 200, CPU)
    layout = KVLayout(**cluster.nodes()["d0"]["layout"])
    assert (layout.dtype, layout.scales) == (FP8, "token")

    def ask(prompt: list[int]) -> dict[str, object]:
        answer = cluster.generate(prompt, max_new_tokens=NUM_TOKENS)
        assert answer["output_ids"] == Sequences(alone).generate(prompt, NUM_TOKENS)
        return dict(answer["meta_info"])

    begin = prompt_of(900, 199, seed=60)
    for length in (1, 17, 900, 900):
        told = ask(begin[:length])
    assert told["cached_tokens"], "the second time is a hit"
    links = cluster.settle()["d0"]["links"]
    for link in links:
        assert link["bytes"] == link["pages"] * layout.page_bytes
    told = ask(begin + prompt_of(200, 199, seed=61))
    stopped = str(told["prefill_node"])
    process = cluster.local.children[stopped].process
    process.send_signal(signal.SIGSTOP)
    try:
        told = ask(begin + prompt_of(300, 199, seed=62))
        assert told["prefill_node"] not in (None, stopped)
    finally:
        process.send_signal(signal.SIGCONT)
    wait_until(lambda: stopped in cluster.nodes(), "its return")
