"""`--quantization` rounds plain weights while they are loaded, alike on any number of ranks, and
random weights have the forms of quantised ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.build import load_model_runner
from engine.kernels.dequantise import dequantise
from engine.model.families import UnsupportedModel
from engine.model.forms.packed import PackedForm
from engine.model.quantisation import AT_LOAD
from engine.options import EngineOptions
from engine.weights.packed_modules import repacked
from engine.weights.quantised_at_load import quantised_modules
from tests.support.engine.driving import CPU, PAGE_SIZE
from tests.support.models.sources import MemorySource
from tests.support.quantised.fp8_packers import FP8_CASES
from tests.support.quantised.packed_checkpoints import (
    FAMILIES,
    config_of,
    logits_of,
    projections,
    save,
    unpacked_tensors,
)
from tests.support.quantised.packers import INTEGER_CASES

Q = "model.layers.0.self_attn.q_proj"


def plain_model(path: Path, family: str, **changes: Any) -> Path:
    chance = torch.Generator().manual_seed(7)
    tensors = unpacked_tensors(family, chance)
    for name, shape in projections(family).items():
        tensors[f"{name}.weight"] = torch.randn(shape, generator=chance) / shape[1] ** 0.5
    return save(path, tensors, config_of(family, **changes))


def runner_of(path: Path, quantization: str = "none", load_format: str = "auto") -> Any:
    options = EngineOptions(
        "float32", PAGE_SIZE, quantization=quantization, load_format=load_format
    )
    return load_model_runner(path, options, lambda _: 1, CPU)


def packed_layers(model: nn.Module) -> list[Any]:
    return [one for one in model.modules() if isinstance(getattr(one, "form", None), PackedForm)]


@pytest.mark.parametrize("name", AT_LOAD)
def test_each_number_goes_to_the_nearest(name: str) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    weight[3] = 0.0
    weight[4] = weight[4].abs()
    stored = MemorySource({f"{Q}.weight": weight})
    source, forms = repacked(stored, quantised_modules(stored, AT_LOAD[name]))
    form = forms[Q]
    assert isinstance(form, PackedForm)
    tensors = [source.read(f"{Q}.{one.name}") for one in form.tensors]
    errors = (dequantise(form.weight(tensors)) - weight).abs()
    if name == "fp8":  # half a step of three bits of mantissa, or of the least number
        assert (errors <= (weight.abs() / 16).clamp_(min=1e-5) * 1.01).all()
        return
    group = 128 if name == "int4" else 256
    groups = weight.unflatten(1, (-1, group))
    extent = groups.amax(2).clamp(min=0) - groups.amin(2).clamp(max=0)
    step = extent / 15 if name == "int4" else groups.abs().amax(2) / 127
    assert (errors.unflatten(1, (-1, group)) <= step[..., None] * 0.51 + 1e-5).all()


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_round_alike(tmp_path: Path, family: str, name: str) -> None:
    path = plain_model(tmp_path / "model", family)
    logits, plain = logits_of(path, quantization=name), logits_of(path)
    assert not torch.equal(logits, plain)
    assert (logits - plain).norm() < 0.3 * plain.norm()
    torch.testing.assert_close(logits_of(path, 2, quantization=name), logits, rtol=1e-4, atol=1e-4)


def test_weights_are_rounded_once_and_kept_once() -> None:
    """Reading the tensors of a form one after the other reads the plain weight once."""
    reads: list[str] = []

    class Counting(MemorySource):
        def read(self, name: str, part: Any = ()) -> Tensor:
            reads.append(name)
            return super().read(name, part)

    stored = Counting({f"{Q}.weight": torch.ones(64, 128)})
    source, forms = repacked(stored, quantised_modules(stored, AT_LOAD["int4"]))
    for tensor in forms[Q].tensors:
        source.read(f"{Q}.{tensor.name}")
    assert reads == [f"{Q}.weight"]


def test_fingerprints_tell_how_weights_are_rounded(tmp_path: Path) -> None:
    path = plain_model(tmp_path / "model", FAMILIES[0])
    names = ["none", *AT_LOAD]
    assert len({runner_of(path, name).fingerprint for name in names}) == len(names)
    dummies = {runner_of(path, name, "dummy").fingerprint for name in names}
    assert len(dummies) == len(names)


SETTINGS = {name: case.settings for name, case in [*INTEGER_CASES.items(), *FP8_CASES.items()]}


@pytest.mark.parametrize("name", SETTINGS)
def test_random_weights_have_the_forms_of_the_settings(tmp_path: Path, name: str) -> None:
    path = plain_model(tmp_path / "model", FAMILIES[0], quantization_config=SETTINGS[name])
    logits = logits_of(path, load_format="dummy")
    assert logits.isfinite().all() and 0.1 < logits.std() < 10
    layers = packed_layers(runner_of(path, load_format="dummy").model)
    assert len(layers) == 4
    for layer in layers:
        weight = dequantise(layer.form.weight(layer._tensors))
        assert weight.std() == pytest.approx(layer.num_in**-0.5, rel=0.1)
        assert weight.mean().abs() < 0.15 * weight.std()


@pytest.mark.parametrize("name", ["int4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_are_the_same_on_any_number_of_ranks(
    tmp_path: Path, family: str, name: str
) -> None:
    path = plain_model(tmp_path / "model", family)
    options = {"quantization": name, "load_format": "dummy"}
    whole = logits_of(path, **options)
    for size in (2, 4):
        torch.testing.assert_close(logits_of(path, size, **options), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["awq", "gptq", "compressed-tensors"])
def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    path = plain_model(tmp_path / "model", FAMILIES[0])
    with pytest.raises(UnsupportedModel, match=f"--quantization is {name}, .*is not quantised;"):
        runner_of(path, name)
    packed = plain_model(tmp_path / "fp8", FAMILIES[0], quantization_config={"quant_method": "fp8"})
    for other in (name, "int4"):
        with pytest.raises(UnsupportedModel, match=f"is {other}, .*is quantised with fp8;"):
            runner_of(packed, other)
