"""Clusters serve model directories as their makers meant them, and say what is broken in one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from infra.cluster import ClusterPlan, LocalCluster
from infra.ports import free_port
from protocol.errors import UserError
from tests.support.engine.driving import prompt_of
from tests.support.models.model_directories import added_token, change_tokenizer
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import Cluster, body_of, save_servable_model, start_cluster
from tests.support.processes.forked import start_forked

VOCAB_SIZE = 199
THINK = 198
"""An id that the tokenizer of the random model has not taken."""
HUGE = 3e38
"""A weight near the end of float32: a finite number whose products are not."""
ANSWER = {"temperature": 0.0, "max_new_tokens": 8, "ignore_eos": True}


def change_config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(scope="module")
def stretched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 64 positions, stretched four times; its tokenizer.json cuts and fills prompts."""
    path = tmp_path_factory.mktemp("stretched")
    save_servable_model("llama-linear", path)
    scaling = {"rope_type": "linear", "factor": 4.0}
    change_config(path, max_position_embeddings=64, rope_parameters=None, rope_scaling=scaling)
    change_tokenizer(
        path,
        truncation={
            "direction": "Right",
            "max_length": 32,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        padding={
            "strategy": {"Fixed": 24},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
    )
    declared = {"added_tokens_decoder": {str(THINK): added_token("<think>", False)}}
    (path / "tokenizer_config.json").write_text(json.dumps(declared))
    return path


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, stretched: Path
) -> Iterator[tuple[Cluster, PreTrainedModel]]:
    reference = AutoModelForCausalLM.from_pretrained(stretched, attn_implementation="eager")
    made = start_cluster(tmp_path_factory, stretched, 1, 1, max_total_tokens="4096")
    yield made, reference
    made.local.stop()


def test_the_stretched_range_is_served_as_transformers_computes_it(
    cluster: tuple[Cluster, PreTrainedModel],
) -> None:
    served, reference = cluster
    prompt = prompt_of(240, VOCAB_SIZE)
    answer = served.generate(prompt)
    assert answer["output_ids"] == reference_tokens(reference, prompt, 8)
    body = {"input_ids": prompt_of(249, VOCAB_SIZE), "sampling_params": ANSWER}
    refused = served.http.post("/generate", json=body)
    assert refused.status_code == 400 and "at most 256 fit" in refused.text


def test_texts_are_neither_cut_nor_filled_and_have_their_added_tokens(
    cluster: tuple[Cluster, PreTrainedModel],
) -> None:
    served, _ = cluster
    for text, num_tokens in (("h" * 40, 40), ("h", 1), ("<think>hh", 3)):
        assert served.generate(text)["meta_info"]["prompt_tokens"] == num_tokens
    body = {"text": "a" * 10_000, "sampling_params": ANSWER}
    refused = served.http.post("/generate", json=body)
    assert refused.status_code == 400 and "10000 characters" in refused.text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"context_length": "257"}, ["--context-length is 257", "at most 256 tokens"]),
        ({"chat_template": "alpaca"}, ["--chat-template", "'alpaca'", "chatml"]),
    ],
)
def test_flags_that_do_not_fit_the_model_stop_the_start(
    stretched: Path, tmp_path: Path, flags: dict[str, str], words: list[str]
) -> None:
    said = refusal_of(stretched, tmp_path, flags)
    assert all(word in said for word in words), said


def test_a_node_refuses_a_tokenizer_of_another_model(stretched: Path, tmp_path: Path) -> None:
    declared = {"<far>": VOCAB_SIZE}
    path = tmp_path / "model"
    path.mkdir()
    for file in stretched.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "tokenizer_config.json").unlink()
    (path / "added_tokens.json").write_text(json.dumps(declared))
    said = refusal_of(stretched, tmp_path, {}, {"model_path": str(path)})
    assert "d0" in said and f"ids up to {VOCAB_SIZE}" in said and "vocab_size of 199" in said


def refusal_of(
    model_path: Path,
    log_dir: Path,
    flags: dict[str, str],
    node_flags: dict[str, str] | None = None,
) -> str:
    """Returns what a cluster says that cannot start."""
    of_coordinator = {key: flags[key] for key in flags if key == "chat_template"}
    of_nodes = {key: flags[key] for key in flags if key not in of_coordinator}
    model = {"model_path": str(model_path)}
    plan = ClusterPlan(
        0,
        1,
        "127.0.0.1",
        free_port(),
        coordinator_flags={**model, **of_coordinator},
        node_flags={**model, **of_nodes, **(node_flags or {})},
        start_timeout_s=120.0,
    )
    with pytest.raises(UserError) as refused:
        LocalCluster(plan, log_dir=log_dir, start=start_forked).start()
    return str(refused.value)


def test_logits_that_are_no_numbers_fail_their_request_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A huge weight of the head makes the logit of a token infinite after some prompts alone."""
    path = tmp_path_factory.mktemp("broken")
    reference = save_servable_model("llama2", path)
    row = torch.zeros(reference.config.hidden_size)
    row[0] = HUGE
    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        if "lm_head.weight" in tensors:
            tensors["lm_head.weight"][5] = row
            save_file(tensors, file, metadata={"format": "pt"})
    with torch.no_grad():
        reference.get_output_embeddings().weight[5] = row
    prompts = [prompt_of(20, VOCAB_SIZE, seed=seed) for seed in range(40)]
    logits = [last_logits(reference, prompt) for prompt in prompts]
    (broken, *_) = [p for p, one in zip(prompts, logits, strict=True) if one.max() == math.inf]
    healthy = [(p, one) for p, one in zip(prompts, logits, strict=True) if one.max() < math.inf][:4]
    served = start_cluster(tmp_path_factory, path, 1, 1, max_total_tokens="4096")
    try:
        with ThreadPoolExecutor(1 + len(healthy)) as pool:
            refused = pool.submit(served.http.post, "/generate", json=body_of(broken))
            answers = [
                pool.submit(served.generate, prompt, max_new_tokens=1) for prompt, _ in healthy
            ]
            for answer, (_, one) in zip(answers, healthy, strict=True):
                assert answer.result()["output_ids"] == [int(one.argmax())]
            assert refused.result().status_code == 503
            assert "not numbers" in refused.result().text
        assert served.http.get("/ready").status_code == 200
    finally:
        served.local.stop()


@torch.inference_mode()
def last_logits(model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([prompt])).logits[0, -1]
    return logits
