"""The fused Triton kernels on a CPU, by Triton's interpreter, beside plain torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from engine.cache.fp8_cache import Fp8Cache
from engine.cache.kv_cache import KVCache
from engine.kernels.base import HeadNorms, HeadShape, Kernels, Rotation, TorchKernels
from protocol.layout import FP8, KVLayout, Scales

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which tests/gpu uses"),
]
CPU = torch.device("cpu")
PLAIN = TorchKernels()


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    """Triton decides when a kernel is defined, which is when its file is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    yield
    del os.environ["TRITON_INTERPRET"]


@pytest.fixture(scope="module")
def fused(interpreter: None) -> Kernels:
    from engine.kernels.triton_kernels import TritonKernels

    return TritonKernels(is_dependent=False)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


def assert_near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [64, 100])
def test_norms(fused: Kernels, size: int) -> None:
    weight, x, residual = torch.randn(size), torch.randn(3, size), torch.randn(3, size)
    assert_near(fused.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    expected = PLAIN.add_rms_norm(x, residual.clone(), weight, 1e-5)
    for one, other in zip(fused.add_rms_norm(x, residual, weight, 1e-5), expected, strict=True):
        assert_near(one, other)


def test_activations(fused: Kernels) -> None:
    gate_up = 3 * torch.randn(3, 192)
    expected = PLAIN.activate_and_mul(gate_up.clone(), "silu")
    assert_near(fused.activate_and_mul(gate_up, "silu"), expected)


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (24, 16)])
def test_heads(fused: Kernels, has_norms: bool, head_dim: int, rotary_dim: int) -> None:
    caches = [KVCache(KVLayout(4, 2, 2, head_dim, "float32"), 10, CPU) for _ in range(2)]
    write_both(fused, caches, has_norms, head_dim, rotary_dim)
    assert_near(caches[0].pool, caches[1].pool)


@pytest.mark.parametrize("scales", ["token", "static"])
def test_heads_into_pages_of_fp8(fused: Kernels, scales: Scales) -> None:
    """Sums of float32 differ in their last bits, by which few numbers are rounded another way."""
    static = torch.rand(2, 2, 2) if scales == "static" else None
    layout = KVLayout(4, 2, 2, 24, FP8, scales)
    caches = [Fp8Cache(layout, 10, CPU, static) for _ in range(2)]
    write_both(fused, caches, True, 24, 16)
    assert (caches[0].storage == caches[1].storage).float().mean() > 0.99
    assert caches[0].storage.count_nonzero() > 5 * 2 * 2 * 20


def write_both(
    fused: Kernels, caches: Sequence[KVCache], has_norms: bool, head_dim: int, rotary_dim: int
) -> None:
    """Writes the same heads into both caches: into the first with `fused`, into the other with
    plain torch; both must give the same queries."""
    shape = HeadShape(6, 2, head_dim)
    norms = HeadNorms(torch.randn(head_dim), torch.randn(head_dim), 1e-6) if has_norms else None
    angles = torch.randn(5, 1, rotary_dim // 2)
    cos, sin = angles.cos(), angles.sin()
    rope = Rotation(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
    tokens = torch.randperm(40)[:5]
    slots = tokens // 4 * 8 + tokens % 4
    qkv = torch.randn(5, 10 * head_dim)
    query, expected = (
        kernels.heads(qkv.clone(), shape, norms, rope, 1, cache, slots)
        for kernels, cache in zip((fused, PLAIN), caches, strict=True)
    )
    assert_near(query, expected)


def test_every_number_is_narrowed_and_widened_as_torch_does_it(interpreter: None) -> None:
    from tests.support.engine.fp8_kernel import check_conversions

    check_conversions(CPU, has_fp8=False)
