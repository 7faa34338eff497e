"""Clusters serve models in GGUF: weights, tokenizer and chat template come from the one file."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

from tests.support.engine.driving import prompt_of
from tests.support.gguf.fetched_files import SMOLLM2, fetched
from tests.support.gguf.vocabularies import CUTS, cut_cases, tokenizer_of
from tests.support.gguf.written_files import write_gguf
from tests.support.models.families import LLAMA3_ROPE, SHAPE, random_model
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import start_cluster

pytestmark = pytest.mark.verify
VOCABULARY = CUTS / "qwen2.gguf"


def mixed(name: str) -> str:
    return {"attn_v": "Q8_0", "ffn_down": "Q5_1"}.get(name.split(".")[-2], "Q4_0")


def test_tokens_are_transformers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """At once, on a hit, in chunks, after a node was lost, and from a text."""
    tokenizer = tokenizer_of(VOCABULARY)
    size = tokenizer.get_vocab_size()
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    config = LlamaConfig(**SHAPE | {"vocab_size": size}, rope_parameters=LLAMA3_ROPE)
    reference = random_model(config)
    write_gguf(reference, path, mixed, VOCABULARY)
    cluster = start_cluster(
        tmp_path_factory, path, 1, 2, chunked_prefill_size="256", max_total_tokens="16384"
    )
    try:
        for length in (1, 40, 700):
            prompt = prompt_of(length, size)
            expected = reference_tokens(reference, prompt, 8)
            assert cluster.generate(prompt)["output_ids"] == expected
            assert cluster.generate(prompt)["output_ids"] == expected
        cluster.kill("d0")
        assert cluster.generate(prompt)["output_ids"] == expected
        text, ids = max(cut_cases("qwen2"), key=lambda case: len(case[1]))
        answer = cluster.generate(text)
        assert answer["output_ids"] == reference_tokens(reference, ids, 8)
        assert answer["meta_info"]["prompt_tokens"] == len(ids)
    finally:
        cluster.local.stop()


def test_a_published_model_answers_sensibly(tmp_path_factory: pytest.TempPathFactory) -> None:
    path: Path = fetched(SMOLLM2)
    cluster = start_cluster(tmp_path_factory, path, 1, 1, max_total_tokens="4096")
    try:
        answer = cluster.generate("The capital of France is", max_new_tokens=4)
        assert answer["text"].startswith(" Paris")
        question = {"role": "user", "content": "What is the capital of France?"}
        body = {"model": "default", "temperature": 0, "max_tokens": 30, "messages": [question]}
        chat = cluster.http.post("/v1/chat/completions", json=body).json()
        assert "Paris" in chat["choices"][0]["message"]["content"]
        assert chat["choices"][0]["finish_reason"] == "stop"
        assert chat["model"] == "SmolLM2-135M-Instruct.Q4_1"
    finally:
        cluster.local.stop()
