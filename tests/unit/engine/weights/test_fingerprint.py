"""Fingerprints: equal for copies, however they are cut into files; different for other weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.weights.fingerprint import (
    MIN_SAMPLES_PER_TENSOR,
    SAMPLE_ELEMENTS,
    SAMPLES_OF_A_MODEL,
    model_fingerprint,
)
from engine.weights.source import Part, TensorInfo
from tests.support.models.sources import MemorySource, saved

CONFIG: dict[str, Any] = {"hidden_size": 8, "layers": {"a": 1, "b": 2}}


def tensors() -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(5)
    shapes: dict[str, tuple[int, ...]] = {
        "norm": (300,),
        "scale": (1,),
        "layers.0.weight": (400, 600),
        "layers.1.weight": (400, 600),
        "layers.1.narrow": (100_000, 3),
        "layers.1.experts": (8, 64, 200),
        "long": (50_000,),
    }
    return {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}


NAMES = list(tensors())


def fingerprint(weights: dict[str, Tensor], variant: str = "", **changes: Any) -> str:
    return model_fingerprint(CONFIG | changes, MemorySource(weights), variant)


def test_copies_agree_however_they_are_cut_into_files(tmp_path: Path) -> None:
    """A model that was resharded has the same values, so its KV is the same too."""
    expected = fingerprint(tensors())
    assert re.fullmatch("[0-9a-f]{32}", expected)
    for num_files in (1, 2, 5):
        source = saved(tmp_path / str(num_files), tensors(), num_files)
        assert model_fingerprint(CONFIG, source) == expected
    reordered = dict(reversed(CONFIG.items()))
    ignored = {"transformers_version": "9", "_name_or_path": "elsewhere"}
    assert model_fingerprint(reordered | ignored, MemorySource(tensors())) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [1.0, 0.05], ids=["all values", "a twentieth of the values"])
def test_a_fine_tune_of_any_single_tensor_is_another_model(name: str, share: float) -> None:
    changed = tensors()
    values = changed[name].flatten()
    values[:: round(1 / share)] += 0.001
    assert fingerprint(changed) != fingerprint(tensors())


@pytest.mark.parametrize("name", NAMES)
def test_the_first_and_the_last_value_of_each_tensor_count(name: str) -> None:
    seen = {fingerprint(tensors())}
    for place in {0, tensors()[name].numel() - 1}:
        changed = tensors()
        changed[name].flatten()[place] += 1.0
        seen.add(fingerprint(changed))
    assert len(seen) == 1 + len({0, tensors()[name].numel() - 1})


def test_each_value_of_a_small_tensor_counts() -> None:
    seen = {fingerprint(tensors())}
    for place in range(300):
        changed = tensors()
        changed["norm"][place] += 1.0
        seen.add(fingerprint(changed))
    assert len(seen) == 301


def test_names_shapes_dtypes_and_their_number_count() -> None:
    weights = tensors()
    renamed = {name.replace("layers.0", "layers.2"): value for name, value in weights.items()}
    exchanged = weights | {
        "layers.0.weight": weights["layers.1.weight"],
        "layers.1.weight": weights["layers.0.weight"],
    }
    reshaped = weights | {"layers.0.weight": weights["layers.0.weight"].view(600, 400)}
    zeros = weights | {"long": torch.zeros(50_000)}
    rounded = zeros | {"long": torch.zeros(50_000, dtype=torch.bfloat16)}
    more, fewer = weights | {"more": torch.zeros(1)}, dict(weights)
    del fewer["norm"]
    models = [weights, renamed, exchanged, reshaped, zeros, rounded, more, fewer, {}]
    assert len({fingerprint(model) for model in models}) == len(models)


def test_the_config_and_what_is_in_no_file_count() -> None:
    seen = {
        fingerprint(tensors()),
        fingerprint(tensors(), "deterministic"),
        fingerprint(tensors(), hidden_size=16),
        model_fingerprint(CONFIG, None),
        model_fingerprint(CONFIG, None, "deterministic"),
        model_fingerprint(CONFIG | {"hidden_size": 16}, None),
    }
    assert len(seen) == 6


class Untouched:
    """A large model whose values are made up as they are read; it counts how many that were."""

    def __init__(self, num_tensors: int, shape: tuple[int, ...]) -> None:
        self.name = "a large model"
        self.tensors = {f"layers.{i}": TensorInfo(shape, "BF16") for i in range(num_tensors)}
        self.num_reads = self.num_read = 0

    def read(self, name: str, part: Part = ()) -> Tensor:
        sizes = list(self.tensors[name].shape)
        sizes[: len(part)] = [one.stop - one.start for one in part]
        values = torch.zeros(sizes, dtype=torch.bfloat16)
        self.num_reads += 1
        self.num_read += values.numel()
        return values


@pytest.mark.parametrize("num_tensors", [700, 20_000])
def test_what_is_read_of_a_large_model_is_bounded(num_tensors: int) -> None:
    source = Untouched(num_tensors, (8192, 8192))
    model_fingerprint(CONFIG, source)
    most = max(SAMPLES_OF_A_MODEL, MIN_SAMPLES_PER_TENSOR * num_tensors)
    assert 0 < source.num_reads <= most
    assert source.num_read <= most * SAMPLE_ELEMENTS
