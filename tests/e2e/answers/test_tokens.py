"""The cluster's greedy tokens are transformers', whatever way the prompt's KV came."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import Cluster, save_servable_model, start_cluster

VOCAB_SIZE = 199


@pytest.fixture
def reference(random_model: tuple[Path, PreTrainedModel]) -> PreTrainedModel:
    return random_model[1]


@pytest.mark.parametrize("length", [1, 2, 16, 17, 100, 500, 3000])
def test_disaggregated(pair_cluster: Cluster, reference: PreTrainedModel, length: int) -> None:
    """Prompts above 256 tokens are also computed and sent in chunks."""
    prompt = prompt_of(length, VOCAB_SIZE)
    expected = reference_tokens(reference, prompt, 8)
    answer = pair_cluster.generate(prompt)
    assert answer["output_ids"] == expected
    assert answer["meta_info"]["prefill_node"] == "p0"
    assert answer["meta_info"]["decode_node"] == "d0"


def test_on_a_prefix_hit_and_when_decode_owns_a_part(
    pair_cluster: Cluster, reference: PreTrainedModel
) -> None:
    pair_cluster.flush()
    prompt = prompt_of(333, VOCAB_SIZE, seed=1)
    first = pair_cluster.generate(prompt)
    again = pair_cluster.generate(prompt)
    longer = prompt + prompt_of(77, VOCAB_SIZE, seed=2)
    extended = pair_cluster.generate(longer)
    assert first["output_ids"] == again["output_ids"] == reference_tokens(reference, prompt, 8)
    assert extended["output_ids"] == reference_tokens(reference, longer, 8)
    assert first["meta_info"]["cached_tokens"] == 0
    assert again["meta_info"]["cached_tokens"] == 332
    assert extended["meta_info"]["cached_tokens"] == 333


def test_nodes_say_at_start_how_they_attend(pair_cluster: Cluster) -> None:
    """The log names the back end that `auto` has chosen."""
    for name in ("p0", "d0"):
        log = (pair_cluster.local.log_dir / f"{name}.log").read_text(encoding="utf-8")
        assert re.search(r"attention: (native|torch), in float32 on cpu", log)


def test_many_prompts_at_once(pair_cluster: Cluster, reference: PreTrainedModel) -> None:
    prompts = [prompt_of(length, VOCAB_SIZE, seed=3) for length in (1, 3, 40, 41, 200, 600, 999)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(pair_cluster.generate, prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer["output_ids"] == reference_tokens(reference, prompt, 8)


def test_tenants_share_nothing(pair_cluster: Cluster) -> None:
    prompt = prompt_of(100, VOCAB_SIZE, seed=4)
    body = {"input_ids": prompt, "sampling_params": {"temperature": 0, "max_new_tokens": 2}}
    cached = []
    for salt in ("a", "a", "b"):
        answer = pair_cluster.http.post("/generate", json=body | {"cache_salt": salt}).json()
        cached.append(answer["meta_info"]["cached_tokens"])
    assert cached == [0, 99, 0]


def test_one_node_alone_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    random_model: tuple[Path, PreTrainedModel],
    reference: PreTrainedModel,
) -> None:
    """Each prompt alone, and then others beside one another, in chunks that are cut for answers."""
    cluster = start_cluster(
        tmp_path_factory, random_model[0], 0, 1, max_total_tokens="8192", max_itl_ms="1"
    )
    try:
        for seed in (5, 6):
            prompts = [prompt_of(length, VOCAB_SIZE, seed=seed) for length in (1, 17, 700)]
            with ThreadPoolExecutor(1 if seed == 5 else len(prompts)) as pool:
                answers = list(pool.map(cluster.generate, prompts))
            for prompt, answer in zip(prompts, answers, strict=True):
                assert answer["output_ids"] == reference_tokens(reference, prompt, 8)
                assert answer["meta_info"]["prefill_node"] is None
    finally:
        cluster.local.stop()


@pytest.mark.parametrize(
    "family",
    [
        "gemma3",
        *(pytest.param(f, marks=pytest.mark.verify) for f in ("mistral", "qwen3", "mixtral")),
    ],
)
def test_other_families(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """All other tests here use a llama3 model. Prompts run alone, then side by side and on hits."""
    path = tmp_path_factory.mktemp(family)
    reference = save_servable_model(family, path)
    cluster = start_cluster(
        tmp_path_factory, path, 1, 1, chunked_prefill_size="256", max_total_tokens="16384"
    )
    try:
        prompts = [prompt_of(length, VOCAB_SIZE, seed=6) for length in (1, 17, 300, 3000)]
        expected = [reference_tokens(reference, prompt, 8) for prompt in prompts]
        assert [cluster.generate(prompt)["output_ids"] for prompt in prompts] == expected
        with ThreadPoolExecutor(len(prompts)) as pool:
            answers = list(pool.map(cluster.generate, prompts))
        assert [answer["output_ids"] for answer in answers] == expected
    finally:
        cluster.local.stop()
