"""What deterministic mode is built on: bits of a row that depend on nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.activation import Activation
from engine.kernels.base import TorchKernels
from engine.kernels.deterministic_kernels import (
    DeterministicKernels,
    agreeing_sizes,
)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(192, 64), (576, 192), (199, 64), (576, 1536), (5, 77)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_of_a_row_is_the_same_anywhere(shape: tuple[int, int], has_bias: bool) -> None:
    weight, kernels = random(*shape), DeterministicKernels(TorchKernels())
    bias = random(shape[0], seed=1) if has_bias else None
    row = random(1, shape[1], seed=2)
    expected = kernels.linear(row, weight, bias)
    torch.testing.assert_close(expected, F.linear(row, weight, bias), atol=1e-4, rtol=1e-4)
    for num_rows in (2, 3, 7, 37, 128, 130):
        for place in {0, num_rows // 2, num_rows - 1}:
            for neighbour in (1.0, 1e6, math.nan):
                x = random(num_rows, shape[1], seed=3) * neighbour
                x[place] = row
                assert torch.equal(kernels.linear(x, weight, bias)[place], expected[0]), num_rows


def test_a_size_that_gives_other_bits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = torch.mm

    def sums_small_products_otherwise(x: Tensor, weight: Tensor) -> Tensor:
        return multiply(x, weight) if len(x) > 16 else multiply(x.flip(1), weight.flip(0))

    monkeypatch.setattr(torch, "mm", sums_small_products_otherwise)
    sizes = agreeing_sizes(random(100, 200))
    assert not set(sizes) & {4, 8, 16}
    assert sizes[-1] == 128


@pytest.mark.usefixtures("threads")
def test_groups_of_rows_are_products_of_their_own() -> None:
    kernels, weight, x = DeterministicKernels(TorchKernels()), random(3, 40, 64), random(12, 64)
    output = kernels.grouped_linear(x, weight, torch.tensor([5, 5, 12], dtype=torch.int32))
    for row, group in ((0, 0), (4, 0), (5, 2), (11, 2)):
        expected = kernels.linear(x[row : row + 1], weight[group], None)
        assert torch.equal(output[row : row + 1], expected)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("inner", [96, 77, 1536])
def test_activations_of_a_row_are_the_same_anywhere(activation: Activation, inner: int) -> None:
    kernels, x = DeterministicKernels(TorchKernels()), random(70, 2 * inner) * 3
    all_rows = kernels.activate_and_mul(x, activation)
    expected = TorchKernels().activate_and_mul(x, activation)
    torch.testing.assert_close(all_rows, expected, atol=1e-5, rtol=1e-5)
    for begin, end in ((0, 1), (3, 4), (69, 70), (2, 9), (0, 33)):
        assert torch.equal(kernels.activate_and_mul(x[begin:end], activation), all_rows[begin:end])
    tails = kernels.activate_and_mul(
        torch.cat((x[:, 1:2], x[:, inner + 1 : inner + 2]), 1), activation
    )
    assert torch.equal(tails[:, 0], all_rows[:, 1]), "nor on the place within the row"


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("size", [16, 64, 77, 576])
def test_functions_of_rows_are_the_same_anywhere(size: int) -> None:
    """What the deterministic kernels and attention leave to torch."""
    x, weight = random(70, size), random(size, seed=1)
    for function in (
        lambda t: F.rms_norm(t, (size,), weight, 1e-5),
        lambda t: t.softmax(-1),
        lambda t: t.sum(-1),
        lambda t: t.exp(),
        lambda t: t.tanh(),
        lambda t: (t * 300).cos(),
        lambda t: (t * 300).sin(),
        lambda t: t.addcmul(t * 1.1, t * 0.3),
    ):
        all_rows = function(x)
        for begin, end in ((0, 1), (3, 4), (69, 70), (2, 9), (0, 33)):
            assert torch.equal(function(x[begin:end]), all_rows[begin:end])
