"""The Triton kernels for packed weights on a CPU, by Triton's interpreter, beside plain torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.kernels.base import Kernels, TorchKernels
from engine.kernels.packed_weights import Activations, BlockKind, PackedWeight
from tests.support.engine.packed_weights import (
    block_weight,
    fp8_weight,
    group_ends,
    integer_weight,
    numbers_of_fp8,
)

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(
        np.lib.NumpyVersion(np.__version__) >= "2.4.0",
        reason="Triton's interpreter takes arrays of one number for the number: numpy < 2.4",
    ),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which tests/gpu uses"),
]
PLAIN = TorchKernels()
SIZES = [0, 3, 0, 9, 1]
"""The rows of five experts."""


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    """Triton decides when a kernel is defined, which is when its file is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    yield
    del os.environ["TRITON_INTERPRET"]


@pytest.fixture(scope="module")
def packed(interpreter: None) -> Kernels:
    from engine.kernels.triton_kernels import TritonKernels

    return TritonKernels(is_dependent=False)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


def assert_same_product(packed: Kernels, x: Tensor, weight: PackedWeight) -> None:
    bias = torch.randn(37).to(x.dtype)
    expected = PLAIN.packed_linear(x.float(), weight, bias.float())
    assert_near(packed.packed_linear(x, weight, bias), expected)


def assert_near(product: Tensor, expected: Tensor) -> None:
    tolerance = 0.004 if product.dtype == torch.float16 else 0.03
    scale = expected.abs().max().item()
    torch.testing.assert_close(product.float(), expected, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("rows", [1, 5, 20, 40, 130])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 96, 192])
def test_integers(packed: Kernels, rows: int, bits: int, group_size: int) -> None:
    weight = integer_weight(37, 192, bits=bits, group_size=group_size, has_zeros=rows != 5)
    assert_same_product(packed, torch.randn(rows, 192).half(), weight)


def test_integers_in_another_order_in_bfloat16(packed: Kernels) -> None:
    weight = integer_weight(
        37, 128, group_size=64, has_zeros=True, has_order=True, scale_dtype=torch.bfloat16
    )
    assert_same_product(packed, torch.randn(3, 128).bfloat16(), weight)


def test_the_sum_over_splits(packed: Kernels) -> None:
    """So many inputs are shared by several programs."""
    weight = integer_weight(37, 2048, group_size=128, has_zeros=True)
    assert_same_product(packed, torch.randn(20, 2048).half(), weight)


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("activations", get_args(Activations))
@pytest.mark.parametrize("has_blocks", [False, True])
def test_fp8(packed: Kernels, rows: int, activations: Activations, has_blocks: bool) -> None:
    weight = fp8_weight(37, 264, activations=activations, has_blocks=has_blocks)
    assert_same_product(packed, numbers_of_fp8(rows, 264).half(), weight)


@pytest.mark.parametrize("activations", ["static", "token"])
def test_fp8_by_the_library(packed: Kernels, activations: Activations) -> None:
    """It takes such sizes, and scales are applied to its sums."""
    weight = fp8_weight(48, 128, activations=activations)
    x, bias = numbers_of_fp8(20, 128).half(), torch.randn(48).half()
    expected = PLAIN.packed_linear(x.float(), weight, bias.float())
    assert_near(packed.packed_linear(x, weight, bias), expected)


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("kind", get_args(BlockKind))
def test_blocks(packed: Kernels, rows: int, kind: BlockKind) -> None:
    assert_same_product(packed, torch.randn(rows, 512).half(), block_weight(kind, 37, 512))


@pytest.mark.parametrize(
    "weight",
    [
        integer_weight(5, 37, 64, has_zeros=True, has_order=True),
        integer_weight(5, 37, 64, bits=8),
        fp8_weight(5, 37, 64, activations="static"),
        fp8_weight(5, 37, 160, activations="block", has_blocks=True),
        block_weight("Q4_K", 5, 37, 256),
    ],
    ids=["int4", "int8", "fp8", "fp8 blocks", "Q4_K"],
)
def test_experts(packed: Kernels, weight: PackedWeight) -> None:
    num_in = {64: 64, 32: 64, 160: 160, 144: 256}[weight[0].shape[-1]]
    x, ends = numbers_of_fp8(sum(SIZES), num_in).half(), group_ends(SIZES)
    expected = PLAIN.grouped_packed_linear(x.float(), weight, ends)
    assert_near(packed.grouped_packed_linear(x, weight, ends), expected)


def test_experts_with_more_rows_than_a_tile_has(packed: Kernels) -> None:
    weight, ends = integer_weight(3, 37, 64), group_ends([30, 0, 5])
    x = torch.randn(35, 64).half()
    expected = PLAIN.grouped_packed_linear(x.float(), weight, ends)
    assert_near(packed.grouped_packed_linear(x, weight, ends), expected)
