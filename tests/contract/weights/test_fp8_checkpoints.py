"""FP8 checkpoints: their numbers are read exactly, inputs are rounded as each format says, and
ranks together compute what one computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.build import load_model_runner
from engine.kernels.base import TorchKernels
from engine.kernels.dequantise import dequantise
from engine.kernels.deterministic_kernels import DeterministicKernels
from engine.model.forms.fp8 import Fp8Form
from engine.model.linear import JointlyRoundedLinear
from engine.model.quantisation import read_quantisation
from engine.options import EngineOptions
from engine.parallel import SOLO, TensorParallel
from engine.weights.packed_modules import packed_modules, repacked
from tests.support.engine.driving import CPU, PAGE_SIZE
from tests.support.engine.ranks import on_ranks
from tests.support.models.sources import MemorySource
from tests.support.quantised.fp8_packers import FP8_CASES
from tests.support.quantised.packed_checkpoints import (
    FAMILIES,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    logits_of,
    save_packed,
)


@pytest.mark.parametrize("outputs", [slice(0, 200), slice(70, 140)])
@pytest.mark.parametrize("name", FP8_CASES)
def test_numbers_and_inputs_are_exact_in_any_part(name: str, outputs: slice) -> None:
    case = FP8_CASES[name]
    tensors, expected = case.pack(200, 192, torch.Generator().manual_seed(3))
    settings = read_quantisation({"quantization_config": case.settings})
    assert settings is not None
    stored = MemorySource({f"layer.{kind}": tensor for kind, tensor in tensors.items()})
    source, forms = repacked(stored, packed_modules(stored, settings))
    form = forms["layer"]
    assert isinstance(form, Fp8Form) and form.activations == case.activations
    read = [
        source.read(f"layer.{one.name}", () if one.outputs is None else (outputs,))
        for one in form.tensors
    ]
    weight = form.weight(read)
    assert torch.equal(dequantise(weight), expected[outputs])
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(4))
    x[1] = 0.0
    product = case.inputs(x).nan_to_num() @ expected[outputs].t()
    for kernels in (TorchKernels(), DeterministicKernels(TorchKernels())):
        torch.testing.assert_close(kernels.packed_linear(x, weight, None), product)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["fp8 in blocks", "compressed-tensors by channel, by token"])
def test_families(tmp_path: Path, family: str, name: str) -> None:
    """Inputs are rounded, so results are near those of the plain model, not equal."""
    case = FP8_CASES[name]
    packed, plain = save_packed(tmp_path, family, case.settings, case.pack)
    logits, expected = logits_of(packed), logits_of(plain)
    assert not torch.equal(logits, expected)
    assert (logits - expected).norm() < 0.1 * expected.norm()


def test_weights_alone_compute_what_plain_ones_compute(tmp_path: Path) -> None:
    case = FP8_CASES["compressed-tensors by tensor, weights alone"]
    packed, plain = save_packed(tmp_path, FAMILIES[0], case.settings, case.pack)
    torch.testing.assert_close(logits_of(packed), logits_of(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", FP8_CASES)
def test_ranks_round_inputs_as_one_does(tmp_path: Path, name: str, size: int) -> None:
    case = FP8_CASES[name]
    packed, _ = save_packed(tmp_path, FAMILIES[0], case.settings, case.pack)
    chance = torch.Generator().manual_seed(5)
    attended = torch.randn(3, HEADS * HEAD_DIM, generator=chance)
    inner = torch.randn(3, INNER, generator=chance)

    def outputs(parallel: TensorParallel) -> tuple[Tensor, Tensor]:
        options = EngineOptions("float32", PAGE_SIZE)
        runner = load_model_runner(packed, options, lambda _: 1, CPU, parallel)
        layer, rank = runner.model.layers[0], parallel.rank
        parts = (x.chunk(parallel.size, dim=1)[rank] for x in (attended, inner))
        if case.activations == "token" and parallel.size > 1:
            assert isinstance(layer.attention.out, JointlyRoundedLinear), "no input is gathered"
        with torch.inference_mode():
            return layer.attention.out(next(parts)), layer.feed_forward.down(next(parts))

    expected = outputs(SOLO)
    assert expected[0].shape == (3, HIDDEN) and expected[0].abs().max() > 0.1
    for of_rank in on_ranks(size, outputs):
        torch.testing.assert_close(of_rank, expected)
