"""Products with packed weights on a GPU give what plain torch gives from the unpacked weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from engine.dependent_launch import launches_dependently
from engine.kernels.base import Kernels, TorchKernels
from engine.kernels.packed_weights import Activations, BlockKind, Fp8Weight, PackedWeight, expert_of
from tests.support.engine.packed_weights import (
    block_weight,
    fp8_weight,
    group_ends,
    integer_weight,
    numbers_of_fp8,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
PLAIN = TorchKernels()
ROWS = [1, 8, 13, 20, 50, 100, 300]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 0.002, torch.bfloat16: 0.01}
"""Shares of the largest number of a product."""
EXPERTS: dict[str, tuple[int, Callable[[], PackedWeight]]] = {
    "int4": (256, lambda: integer_weight(9, 96, 256, group_size=128, device=CUDA)),
    "int4 with zeros, in an order": (
        256,
        lambda: integer_weight(9, 96, 256, has_zeros=True, has_order=True, device=CUDA),
    ),
    "int8": (256, lambda: integer_weight(9, 96, 256, bits=8, device=CUDA)),
    "fp8 static": (256, lambda: fp8_weight(9, 96, 256, activations="static", device=CUDA)),
    "fp8 token": (264, lambda: fp8_weight(9, 96, 264, activations="token", device=CUDA)),
    "fp8 block": (
        320,
        lambda: fp8_weight(9, 96, 320, activations="block", has_blocks=True, device=CUDA),
    ),
    "Q4_0": (256, lambda: block_weight("Q4_0", 9, 96, 256, device=CUDA)),
    "Q6_K": (512, lambda: block_weight("Q6_K", 9, 96, 512, device=CUDA)),
}


@pytest.fixture(scope="module")
def packed() -> Kernels:
    from engine.kernels.triton_kernels import TritonKernels

    return TritonKernels(launches_dependently(CUDA))


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    torch.manual_seed(3)
    return request.param


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=CUDA).to(dtype)


def inputs(weight: PackedWeight, rows: int, num_in: int, dtype: torch.dtype) -> Tensor:
    """Returns random inputs. Torch divides by a constant as it multiplies by its inverse, so the
    last bit of a scale differs from the kernel's: where FP8 rounds, it must not matter."""
    if isinstance(weight, Fp8Weight):
        return numbers_of_fp8(rows, num_in).to(CUDA, dtype)
    return normal(rows, num_in, dtype=dtype)


def assert_near(product: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[product.dtype] * expected.abs().max().item()
    torch.testing.assert_close(product.float(), expected, atol=tolerance, rtol=0)


def assert_same_product(
    packed: Kernels, weight: PackedWeight, rows: int, num_in: int, dtype: torch.dtype
) -> None:
    num_out = weight[0].shape[0]
    x, bias = inputs(weight, rows, num_in, dtype), normal(num_out, dtype=dtype)
    expected = PLAIN.packed_linear(x.float(), weight, bias.float())
    assert_near(packed.packed_linear(x, weight, bias), expected)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("num_out", "num_in", "group_size", "bits", "has_zeros"),
    [
        (128, 256, 32, 4, False),
        (100, 576, 64, 4, True),
        (1024, 4096, 128, 4, True),
        (96, 8192, 8192, 4, False),
        (128, 256, 32, 8, True),
        (1024, 4096, 128, 8, False),
        (64, 96, 96, 8, False),
    ],
)
def test_integers(
    packed: Kernels,
    dtype: torch.dtype,
    rows: int,
    num_out: int,
    num_in: int,
    group_size: int,
    bits: int,
    has_zeros: bool,
) -> None:
    weight = integer_weight(
        num_out,
        num_in,
        bits=bits,
        group_size=group_size,
        has_zeros=has_zeros,
        has_order=group_size == 32,
        scale_dtype=dtype if group_size > 64 else torch.float32,
        device=CUDA,
    )
    assert_same_product(packed, weight, rows, num_in, dtype)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("activations", get_args(Activations))
@pytest.mark.parametrize("has_blocks", [False, True])
@pytest.mark.parametrize(("num_out", "num_in"), [(100, 600), (1024, 4096)])
def test_fp8(
    packed: Kernels,
    rows: int,
    activations: Activations,
    has_blocks: bool,
    num_out: int,
    num_in: int,
) -> None:
    torch.manual_seed(3)
    weight = fp8_weight(
        num_out, num_in, activations=activations, has_blocks=has_blocks, device=CUDA
    )
    dtype = torch.float16 if num_out == 100 else torch.bfloat16
    assert_same_product(packed, weight, rows, num_in, dtype)


@pytest.mark.parametrize("rows", [1, 20, 100])
@pytest.mark.parametrize("kind", get_args(BlockKind))
@pytest.mark.parametrize(("num_out", "num_in"), [(100, 768), (512, 4096)])
def test_blocks(packed: Kernels, rows: int, kind: BlockKind, num_out: int, num_in: int) -> None:
    torch.manual_seed(3)
    weight = block_weight(kind, num_out, num_in, device=CUDA)
    dtype = torch.float16 if num_out == 100 else torch.bfloat16
    assert_same_product(packed, weight, rows, num_in, dtype)


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("sizes", [[0, 1, 0, 0, 3, 0, 0, 1, 0], [70, 0, 200, 1, 9, 0, 17, 40, 3]])
def test_experts(packed: Kernels, dtype: torch.dtype, name: str, sizes: list[int]) -> None:
    num_in, make = EXPERTS[name]
    weight, ends = make(), group_ends(sizes, CUDA)
    x = inputs(weight, sum(sizes), num_in, dtype)
    products = []
    begin = 0
    for expert, end in enumerate(ends.tolist()):
        if end > begin:
            alone = expert_of(weight, expert)
            products.append(PLAIN.packed_linear(x[begin:end].float(), alone, None))
        begin = end
    assert_near(packed.grouped_packed_linear(x, weight, ends), torch.cat(products))


@pytest.mark.parametrize("activations", ["static", "token", "block"])
def test_rounding_is_torchs_but_for_ties(packed: Kernels, activations: Activations) -> None:
    torch.manual_seed(3)
    has_blocks = activations == "block"
    weight = fp8_weight(1024, 4096, activations=activations, has_blocks=has_blocks, device=CUDA)
    for rows in (1, 40, 300):
        x = normal(rows, 4096, dtype=torch.bfloat16)
        expected = PLAIN.packed_linear(x.float(), weight, None)
        assert_near(packed.packed_linear(x, weight, None), expected)


def test_float32_is_multiplied_by_the_reference(packed: Kernels) -> None:
    torch.manual_seed(3)
    weight = integer_weight(96, 256, device=CUDA)
    assert_same_product(packed, weight, 5, 256, torch.float32)


def test_a_product_has_the_same_bits_each_time_and_in_a_graph(packed: Kernels) -> None:
    torch.manual_seed(3)
    weights: list[PackedWeight] = [
        integer_weight(4096, 4096, group_size=128, scale_dtype=torch.bfloat16, device=CUDA),
        fp8_weight(4096, 4096, activations="token", device=CUDA),
        block_weight("Q4_K", 4096, 4096, device=CUDA),
    ]
    for rows in (1, 32, 64):
        x = normal(rows, 4096, dtype=torch.bfloat16)

        def chain(x: Tensor) -> Tensor:
            for weight in weights:
                y = packed.packed_linear(x, weight, None)
                x = packed.rms_norm(y, torch.ones_like(y[0]), 1e-5)
            return x

        expected = chain(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = chain(x)
        for _ in range(5):
            assert torch.equal(chain(x), expected)
            output.zero_()
            graph.replay()
            assert torch.equal(output, expected)
