"""Fused kernels give what plain torch gives, in every form that a model asks for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.cache.kv_cache import KVCache
from engine.dependent_launch import launches_dependently
from engine.kernels.activation import Activation
from engine.kernels.base import HeadNorms, HeadShape, Kernels, Rotation, TorchKernels
from protocol.layout import KVLayout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}
PLAIN = TorchKernels()


@pytest.fixture(scope="module")
def fused() -> Kernels:
    from engine.kernels.triton_kernels import TritonKernels

    return TritonKernels(launches_dependently(CUDA))


@pytest.fixture(params=TOLERANCES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    torch.manual_seed(3)
    return request.param


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=CUDA).to(dtype)


def assert_near(one: Tensor, other: Tensor) -> None:
    tolerance = TOLERANCES[other.dtype]
    torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("size", [64, 100, 576, 4096])
@pytest.mark.parametrize("float_weight", [False, True])
def test_norms(
    fused: Kernels, dtype: torch.dtype, rows: int, size: int, float_weight: bool
) -> None:
    weight = normal(size, dtype=torch.float32 if float_weight else dtype)
    x, residual = normal(rows, size, dtype=dtype), normal(rows, size, dtype=dtype)
    assert_near(fused.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    expected = PLAIN.add_rms_norm(x, residual.clone(), weight, 1e-5)
    for one, other in zip(fused.add_rms_norm(x, residual, weight, 1e-5), expected, strict=True):
        assert_near(one, other)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("inner", [8, 96, 1536, 14_336])
def test_activations(
    fused: Kernels, dtype: torch.dtype, activation: Activation, inner: int
) -> None:
    gate_up = 3 * normal(33, 2 * inner, dtype=dtype)
    expected = PLAIN.activate_and_mul(gate_up.clone(), activation)
    assert_near(fused.activate_and_mul(gate_up, activation), expected)


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (96, 96), (128, 96), (256, 256)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (9, 3), (32, 8), (5, 1)])
def test_heads_are_split_normed_rotated_and_stored(
    fused: Kernels,
    dtype: torch.dtype,
    has_norms: bool,
    head_dim: int,
    rotary_dim: int,
    heads: int,
    kv_heads: int,
) -> None:
    shape = HeadShape(heads, kv_heads, head_dim)
    layout = KVLayout(16, 2, kv_heads, head_dim, str(dtype).removeprefix("torch."))
    caches = [KVCache(layout, 10, CUDA) for _ in range(2)]
    norms = None
    if has_norms:
        norms = HeadNorms(normal(head_dim, dtype=dtype), normal(head_dim, dtype=dtype), 1e-6)
    angles = torch.randn(40, 1, rotary_dim // 2, device=CUDA)
    cos, sin = angles.cos(), angles.sin()
    rope = Rotation(torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype))
    tokens = torch.randperm(160, device=CUDA)[:40]
    slots = tokens // 16 * 32 + tokens % 16
    qkv = normal(40, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    query, expected = (
        kernels.heads(qkv.clone(), shape, norms, rope, 1, cache, slots)
        for kernels, cache in zip((fused, PLAIN), caches, strict=True)
    )
    tolerance = 3 * TOLERANCES[dtype]  # plain torch rounds between norm, products and sum
    torch.testing.assert_close(query, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(caches[0].pool, caches[1].pool, atol=tolerance, rtol=tolerance)


def test_a_chain_of_dependent_kernels_gives_what_it_gives_one_by_one(fused: Kernels) -> None:
    """Each kernel reads what the one before it has written just now, in a graph and out of it."""
    weights = [normal(4096, 4096, dtype=torch.bfloat16) / 64 for _ in range(8)]
    scale = normal(4096, dtype=torch.bfloat16)
    start = normal(2, 4096, dtype=torch.bfloat16)

    def chain(is_slow: bool) -> Tensor:
        x, residual = start.clone(), start.clone()
        for weight in weights:
            x = fused.linear(x, weight, None)
            if is_slow:
                torch.cuda.synchronize()
            x, residual = fused.add_rms_norm(x, residual, scale, 1e-5)
            if is_slow:
                torch.cuda.synchronize()
            x = fused.activate_and_mul(torch.cat((x, residual), 1), "silu")
        return x

    expected = chain(is_slow=True)
    for _ in range(10):
        assert torch.equal(chain(is_slow=False), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = chain(is_slow=False)
    for _ in range(10):
        output.zero_()
        graph.replay()
        assert torch.equal(output, expected)
