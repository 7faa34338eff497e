"""The first Qwen in AWQ and GPTQ, under its own names and with the biases of zero that AutoGPTQ
adds, answers as the same weights do unpacked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from tests.support.checkpoints.first_qwen import config_of
from tests.support.engine.driving import CPU, PAGE_SIZE, Sequences, prompt_of
from tests.support.quantised.packers import INTEGER_CASES, IntegerCase

HIDDEN, INNER, VOCAB, NUM_LAYERS = 64, 128, 99, 2
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256,
}
PROJECTIONS = {
    "attn.c_attn": (3 * HIDDEN, HIDDEN),
    "attn.c_proj": (HIDDEN, HIDDEN),
    "mlp.w1": (INNER, HIDDEN),
    "mlp.w2": (INNER, HIDDEN),
    "mlp.c_proj": (HIDDEN, INNER),
}
CASES = ("awq", "gptq symmetric", "gptq v2", "gptq in 8 bits", "gptq with desc_act")


def checkpoints(case: IntegerCase) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the tensors of a packed model, and of the same one unpacked."""
    chance = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance)

    common = {
        "transformer.wte.weight": normal(VOCAB, HIDDEN),
        "transformer.ln_f.weight": 1 + 0.1 * normal(HIDDEN),
        "lm_head.weight": normal(VOCAB, HIDDEN),
    }
    packed, plain = dict(common), dict(common)
    for layer in range(NUM_LAYERS):
        prefix = f"transformer.h.{layer}"
        for norm in ("ln_1", "ln_2"):
            packed[f"{prefix}.{norm}.weight"] = 1 + 0.1 * normal(HIDDEN)
            plain[f"{prefix}.{norm}.weight"] = packed[f"{prefix}.{norm}.weight"]
        for name, (num_out, num_in) in PROJECTIONS.items():
            integers = case.integers(num_out, num_in, chance)
            module = f"{prefix}.{name}"
            packed |= {f"{module}.{kind}": one for kind, one in case.pack(integers).items()}
            packed[f"{module}.bias"] = torch.zeros(num_out)
            plain[f"{module}.weight"] = integers.weight
        packed[f"{prefix}.attn.c_attn.bias"] = 0.1 * normal(3 * HIDDEN)
        plain[f"{prefix}.attn.c_attn.bias"] = packed[f"{prefix}.attn.c_attn.bias"]
    return packed, plain


def runner_of(path: Path, tensors: dict[str, Tensor], settings: object) -> ModelRunner:
    path.mkdir()
    save_file({name: one.contiguous() for name, one in tensors.items()}, path / "model.safetensors")
    config = config_of(SIZES) | {"quantization_config": settings}
    (path / "config.json").write_text(json.dumps(config))
    return load_model_runner(path, EngineOptions("float32", PAGE_SIZE), lambda _: 20, CPU)


@pytest.mark.parametrize("name", CASES)
def test_packed_weights_answer_as_plain_ones(tmp_path: Path, name: str) -> None:
    case = INTEGER_CASES[name]
    packed, plain = checkpoints(case)
    ours = Sequences(runner_of(tmp_path / "packed", packed, case.settings))
    theirs = Sequences(runner_of(tmp_path / "plain", plain, None))
    prompt = prompt_of(70, VOCAB)
    logits = ours.logits(prompt)
    assert (logits - theirs.logits(prompt)).abs().max() <= 1e-4 * logits.abs().max()
    assert ours.generate(prompt, 8, chunk=33) == theirs.generate(prompt, 8)
