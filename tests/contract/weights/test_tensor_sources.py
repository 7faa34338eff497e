"""What every `TensorSource` does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.weights.source import Part, TensorSource
from tests.support.models.sources import MemorySource, saved

TENSORS: dict[str, Tensor] = {
    "scalar": torch.tensor(0.5),
    "norm": torch.arange(7.0),
    "weight": torch.arange(60.0).view(6, 10).bfloat16(),
    "half": torch.arange(60.0).view(6, 10).half(),
    "experts": torch.arange(120.0).view(4, 5, 6),
    "packed": torch.arange(-12, 12, dtype=torch.int32).view(3, 8),
    "bytes": torch.arange(-12, 12, dtype=torch.int8).view(3, 8),
}
MakeSource = Callable[[dict[str, Tensor]], TensorSource]


@pytest.fixture(params=["memory", "one file", "three files"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> TensorSource:
    in_files = partial(saved, tmp_path / "model", num_files=3 if "three" in request.param else 1)
    make: MakeSource = MemorySource if request.param == "memory" else in_files
    return make(TENSORS)


def test_it_knows_names_shapes_and_dtypes_before_anything_is_read(source: TensorSource) -> None:
    assert source.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert source.tensors[name].shape == tuple(tensor.shape), name
    assert source.tensors["weight"].dtype == "BF16"
    assert len({source.tensors[name].dtype for name in ("norm", "weight", "half", "packed")}) == 4


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_whole_and_as_it_is_stored(source: TensorSource, name: str) -> None:
    values = source.read(name)
    assert values.dtype == TENSORS[name].dtype
    assert torch.equal(values, TENSORS[name])


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("norm", (slice(2, 5),)),
        ("weight", (slice(1, 3),)),
        ("weight", (slice(None), slice(4, 9))),
        ("weight", (slice(5, 6), slice(9, 10))),
        ("experts", (slice(1, 2), slice(0, 5), slice(2, 3))),
        ("experts", (slice(None), slice(1, 4))),
        ("packed", (slice(None), slice(2, 4))),
        ("bytes", (slice(2, 3),)),
    ],
)
def test_a_part_is_that_part_of_the_whole(source: TensorSource, name: str, part: Part) -> None:
    assert torch.equal(source.read(name, part), TENSORS[name][part])


def test_tensors_are_read_in_any_order_and_again(source: TensorSource) -> None:
    for name in [*reversed(TENSORS), *TENSORS, "norm", "norm"]:
        assert torch.equal(source.read(name), TENSORS[name])
