"""A model in GGUF answers as transformers does with the same weights, dequantised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from engine.build import load_model_runner
from engine.kernels.gguf_blocks import VALUES
from engine.kernels.packed_weights import BlockKind
from engine.options import EngineOptions
from engine.parallel import TensorParallel
from engine.steps.runner import ModelRunner
from tests.support.engine.driving import CPU, PAGE_SIZE, Sequences, prompt_of
from tests.support.engine.ranks import on_ranks
from tests.support.gguf.written_files import write_gguf
from tests.support.models.families import (
    EXPERTS,
    FAMILIES,
    GEMMA_ROPES,
    SHAPE,
    WINDOW,
    prompt_lengths,
    random_model,
)
from tests.support.models.reference import reference_tokens

OWN: dict[str, PretrainedConfig] = {
    "gemma2": Gemma2Config(**SHAPE, head_dim=32, sliding_window=WINDOW, query_pre_attn_scalar=32),
    "gemma3": Gemma3TextConfig(
        **SHAPE | {"num_hidden_layers": 6},
        head_dim=32,
        sliding_window=WINDOW,
        sliding_window_pattern=6,
        query_pre_attn_scalar=32,
        rope_parameters=GEMMA_ROPES,
    ),
    "qwen3-moe": Qwen3MoeConfig(**SHAPE, **EXPERTS, head_dim=32, norm_topk_prob=True),
}
"""Families of which a GGUF file says less than a config.json, with what readers take for it."""
OF_FAMILIES = (
    "llama2",
    "llama3",
    "llama-linear",
    "llama-bias",
    "qwen2",
    "qwen2-yarn",
    "qwen3",
    "phi3",
    "phi4-mini",
    "mixtral",
)
MODELS = {name: FAMILIES[name] for name in OF_FAMILIES} | OWN
LARGE = LlamaConfig(
    **SHAPE | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
)
"""A model whose rows are whole blocks of 256."""


def mixed(name: str) -> str:
    """Types as files have them: several in one layer, also among projections of the same input."""
    kinds = {
        "token_embd": "Q8_0",
        "output": "F16",
        "attn_q": "Q4_0",
        "attn_k": "Q4_0",
        "attn_v": "Q5_1",
        "attn_output": "Q4_1",
        "ffn_gate": "Q5_0",
        "ffn_up": "BF16",
        "ffn_gate_exps": "Q4_0",
        "ffn_up_exps": "Q4_1",
    }
    return kinds.get(name.split(".")[-2], "Q8_0")


def pair_of(
    config: PretrainedConfig, path: Path, types: dict[str, str] | None
) -> tuple[PreTrainedModel, ModelRunner]:
    model = random_model(config)
    file = path / "model.gguf"
    write_gguf(model, file, mixed if types is None else lambda name: types[""])
    return model, load_model_runner(file, EngineOptions("float32", PAGE_SIZE), lambda _: 200, CPU)


@pytest.mark.parametrize("types", [{"": "F32"}, None], ids=["float32", "mixed"])
@pytest.mark.parametrize("family", MODELS)
def test_every_family_answers_as_transformers(
    family: str, types: dict[str, str] | None, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    reference, runner = pair_of(MODELS[family], tmp_path, types)
    for length in prompt_lengths(family, [1, 33, 150], num_answer_tokens=8):
        prompt = prompt_of(length, reference.config.vocab_size)
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt])).logits[0, -1]
        found = Sequences(runner).logits(prompt)
        assert (found - logits).abs().max() <= 2e-5 * max(1.0, float(logits.abs().max())), length
        expected = reference_tokens(reference, prompt, 8)
        for chunk in (10_000, 37) if length > 37 else (10_000,):
            assert Sequences(runner).generate(prompt, 8, chunk) == expected, (length, chunk)


@pytest.mark.parametrize("kind", VALUES)
def test_every_kind_of_blocks(kind: BlockKind, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    reference, runner = pair_of(LARGE, tmp_path, {"": kind})
    prompt = prompt_of(40, LARGE.vocab_size)
    with torch.inference_mode():
        logits = reference(torch.tensor([prompt])).logits[0, -1]
    found = Sequences(runner).logits(prompt)
    assert (found - logits).abs().max() <= 2e-5 * max(1.0, float(logits.abs().max()))
    assert Sequences(runner).generate(prompt, 8, 17) == reference_tokens(reference, prompt, 8)


@pytest.mark.parametrize("family", ["llama3", "qwen2", "gemma3", "phi3", "mixtral"])
def test_ranks_answer_as_one(family: str, tmp_path: Path) -> None:
    """Half of the inner 96 inputs are no whole blocks of 32: where ranks cannot share them, they
    share outputs."""
    torch.set_num_threads(1)
    reference = random_model(MODELS[family])
    write_gguf(reference, tmp_path / "model.gguf", mixed)
    prompt = prompt_of(40, reference.config.vocab_size)

    def answer(parallel: TensorParallel) -> list[int]:
        options = EngineOptions("float32", PAGE_SIZE)
        path = tmp_path / "model.gguf"
        runner = load_model_runner(path, options, lambda _: 200, CPU, parallel)
        return Sequences(runner).generate(prompt, 8, 17)

    expected = reference_tokens(reference, prompt, 8)
    for size in (2, 4) if family in ("llama3", "qwen2") else (2,):
        assert on_ranks(size, answer) == [expected] * size
