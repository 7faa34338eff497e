"""Packed checkpoints compute what the same numbers in float32 compute: in every format, family and
number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.kernels.dequantise import dequantise
from engine.model.forms.integer import IntegerForm
from engine.model.quantisation import Quantisation, read_quantisation
from engine.weights.formats.module import PackedModule
from engine.weights.packed_modules import packed_modules, repacked
from engine.weights.source import TensorSource
from tests.support.models.sources import MemorySource
from tests.support.quantised.packed_checkpoints import FAMILIES, logits_of, save_packed
from tests.support.quantised.packers import INTEGER_CASES, IntegerCase


def save_integers(path: Path, family: str, case: IntegerCase) -> tuple[Path, Path]:
    def pack(
        num_out: int, num_in: int, chance: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        integers = case.integers(num_out, num_in, chance)
        return case.pack(integers), integers.weight

    return save_packed(path, family, case.settings, pack)


@pytest.mark.parametrize("name", INTEGER_CASES)
def test_integers(tmp_path: Path, name: str) -> None:
    packed, plain = save_integers(tmp_path, "LlamaForCausalLM", INTEGER_CASES[name])
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
    packed, plain = save_integers(tmp_path, "LlamaForCausalLM", INTEGER_CASES[name])
    expected = logits_of(plain)
    for size in (2, 4):
        logits = logits_of(packed, size)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


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
