"""Packed checkpoints compute what the same numbers in float32 compute: in every format, family and
number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.kernels.base import TorchKernels
from engine.kernels.dequantise import dequantise
from engine.model.config import ModelConfig
from engine.model.decoder import DecoderModel
from engine.model.forms.integer import IntegerForm
from engine.model.linear import Build
from engine.model.quantisation import Quantisation, read_quantisation
from engine.options import EngineOptions
from engine.parallel import SOLO
from engine.weights.checkpoint import open_checkpoint
from engine.weights.formats.module import PackedModule
from engine.weights.packed_modules import packed_modules, repacked
from engine.weights.source import TensorSource
from tests.support.models.sources import MemorySource
from tests.support.quantised.packed_checkpoints import (
    FAMILIES,
    HIDDEN,
    config_of,
    logits_of,
    projections,
    save,
    save_packed,
    unpacked_tensors,
)
from tests.support.quantised.packers import INTEGER_CASES, IntegerCase

LLAMA = "LlamaForCausalLM"


def save_integers(path: Path, family: str, case: IntegerCase) -> tuple[Path, Path]:
    def pack(
        num_out: int, num_in: int, chance: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        integers = case.integers(num_out, num_in, chance)
        return case.pack(integers), integers.weight

    return save_packed(path, family, case.settings, pack)


@pytest.mark.parametrize("name", INTEGER_CASES)
def test_integers(tmp_path: Path, name: str) -> None:
    packed, plain = save_integers(tmp_path, LLAMA, INTEGER_CASES[name])
    torch.testing.assert_close(logits_of(packed), logits_of(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["awq", "gptq with desc_act", "W8A16 with zero points"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path: Path, family: str, name: str) -> None:
    packed, plain = save_integers(tmp_path, family, INTEGER_CASES[name])
    expected = logits_of(plain)
    for size in (1, 2, 4):
        logits = logits_of(packed, size)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", INTEGER_CASES)
def test_ranks(tmp_path: Path, name: str) -> None:
    """With four ranks, the 192 inputs of the last projection are cut within a run of 32."""
    packed, plain = save_integers(tmp_path, LLAMA, INTEGER_CASES[name])
    expected = logits_of(plain)
    for size in (2, 4):
        logits = logits_of(packed, size)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", ["gptq in 8 bits", "gptq with desc_act"])
def test_the_head_is_packed_if_the_file_has_it_so(tmp_path: Path, name: str, size: int) -> None:
    case, chance = INTEGER_CASES[name], torch.Generator().manual_seed(9)
    integers = case.integers(56, HIDDEN, chance)
    tensors = unpacked_tensors(LLAMA, chance)
    for module, shape in projections(LLAMA).items():
        tensors[f"{module}.weight"] = torch.randn(shape, generator=chance) / shape[1] ** 0.5
    tensors["lm_head.weight"] = integers.weight
    tensors["model.embed_tokens.weight"] = torch.randn(56, HIDDEN, generator=chance)
    plain = save(tmp_path / "plain", tensors, config_of(LLAMA, vocab_size=56))
    del tensors["lm_head.weight"]
    tensors |= {f"lm_head.{kind}": tensor for kind, tensor in case.pack(integers).items()}
    settings = case.settings | {"lm_head": True}
    config = config_of(LLAMA, vocab_size=56, quantization_config=settings)
    packed = save(tmp_path / "packed", tensors, config)
    torch.testing.assert_close(logits_of(packed, size), logits_of(plain), rtol=1e-4, atol=1e-4)


SIZES_OF_LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "vocab_size": 32000,
    "moe_intermediate_size": None,
}


@pytest.mark.parametrize("name", ["awq", "gptq symmetric", "W4A16"])
def test_a_model_of_7b_takes_hardly_more_than_its_file(tmp_path: Path, name: str) -> None:
    """In groups of 128, as published, and float16. Nothing is allocated."""
    settings = json.loads(json.dumps(INTEGER_CASES[name].settings).replace(": 32", ": 128"))
    raw = config_of(LLAMA, **SIZES_OF_LLAMA_7B, quantization_config=settings)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    checkpoint = open_checkpoint(tmp_path, EngineOptions(load_format="dummy"))
    meta = torch.device("meta")
    build = Build(torch.float16, meta, TorchKernels(), SOLO, checkpoint.form_of)
    model = DecoderModel(ModelConfig.from_config(checkpoint.config, tmp_path), build)
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    inner, hidden = raw["intermediate_size"], raw["hidden_size"]
    num_packed = 32 * (4 * hidden * hidden + 3 * hidden * inner)
    of_groups = num_packed // 128 * (2 if name == "W4A16" else 2.5)
    of_file = num_packed // 2 + of_groups + 2 * 2 * raw["vocab_size"] * hidden
    assert 0.95 * of_file < num_bytes < 1.02 * of_file


@pytest.mark.parametrize("name", INTEGER_CASES)
def test_numbers_are_exact_in_any_part(name: str) -> None:
    """What is read dequantises to the very numbers that were packed, whichever part is read."""
    case, chance = INTEGER_CASES[name], torch.Generator().manual_seed(3)
    integers = case.integers(48, 128, chance)
    tensors = {f"layer.{kind}": tensor for kind, tensor in case.pack(integers).items()}
    settings = read_quantisation({"quantization_config": case.settings})
    assert settings is not None
    source, forms = repacked(*_opened(tensors, settings))
    form = forms["layer"]
    assert isinstance(form, IntegerForm)
    for outputs in (slice(0, 48), slice(5, 23)):
        read = [
            source.read(f"layer.{one.name}", () if one.outputs is None else (outputs,))
            for one in form.tensors
        ]
        weight = form.weight(read)
        expected = integers.weight[outputs]
        if weight.order is not None:
            expected = expected[:, weight.order]
        assert torch.equal(dequantise(weight), expected)


def _opened(
    tensors: dict[str, Tensor], settings: Quantisation
) -> tuple[TensorSource, dict[str, PackedModule]]:
    source = MemorySource(tensors)
    return source, packed_modules(source, settings)
