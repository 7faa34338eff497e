"""On CUDA fused kernels write FP8 pages as plain torch does, attention reads what is there, and a
model whose steps are graphs gives the tokens that it gives step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.attention.attention_backends import make_attention
from engine.attention.backend import AttentionForm
from engine.attention.deterministic_attention import DeterministicAttention
from engine.attention.torch_attention import TorchAttention
from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.cache.fp8_cache import Fp8Cache
from engine.dependent_launch import launches_dependently
from engine.kernels.base import HeadNorms, HeadShape, Rotation, TorchKernels
from engine.options import EngineOptions
from protocol.layout import FP8, KVLayout, Scales
from protocol.sampling import Sampling
from tests.support.engine.attention import CHUNKS, PROMPTS, SINGLES, Case
from tests.support.engine.driving import PAGE_SIZE, Sequences, prompt_of
from tests.support.models.families import save_random_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
EXTREMES = [(3000, 1), (0, 1), (2, 1), (900, 1), (0, 300), (500, 140), (0, 2), (1800, 2)]
BATCHES = {"mixed": [*SINGLES, *CHUNKS, *PROMPTS], "extremes": EXTREMES}
FORMS = {
    "plain": AttentionForm(0.125),
    "window": AttentionForm(0.125, window=7),
    "softcap": AttentionForm(0.3, window=700, softcap=2.0),
}


@pytest.fixture(params=["token", "static"])
def scales(request: pytest.FixtureRequest) -> Scales:
    torch.manual_seed(5)
    torch.backends.cuda.matmul.allow_tf32 = False
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("backend", ["triton", "torch", "deterministic"])
def test_attention(backend: str, batch: str, form: str, dtype: torch.dtype, scales: Scales) -> None:
    case = Case(BATCHES[batch], 16, head_dim=64, device=CUDA, dtype=dtype, scales=scales)
    if backend == "triton":
        attention = make_attention("auto", False, case.cache.layout, CUDA)
        assert attention.name == "triton", "no library's kernel reads such pages"
        case.check(attention, FORMS[form])
    else:
        case.check(
            TorchAttention() if backend == "torch" else DeterministicAttention(), FORMS[form]
        )


@pytest.mark.parametrize(("kv_heads", "group"), [(1, 20), (8, 4), (3, 3)])
@pytest.mark.parametrize("head_dim", [16, 80, 128, 256])
@pytest.mark.parametrize("page_size", [1, 16, 128])
def test_shapes(kv_heads: int, group: int, head_dim: int, page_size: int, scales: Scales) -> None:
    parts = [(0, 9), (170, 1), (50, 33), (2, 1)]
    case = Case(parts, page_size, kv_heads, group, head_dim=head_dim, device=CUDA, scales=scales)
    attention = make_attention("triton", False, case.cache.layout, CUDA)
    case.check(attention, AttentionForm(head_dim**-0.5))


@pytest.mark.parametrize("has_fp8", [False, True])
def test_every_number_is_narrowed_and_widened_as_torch_does_it(has_fp8: bool) -> None:
    from tests.support.engine.fp8_kernel import check_conversions

    if has_fp8 and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("this GPU does not round float32 to eight bits at once")
    check_conversions(CUDA, has_fp8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (32, 8, 128), (5, 1, 96)])
def test_heads_are_rounded_into_pages(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, scales: Scales
) -> None:
    """Sums of float32 differ in their last bits, by which few numbers are rounded another way. In
    bfloat16 the largest number of a head may be rounded otherwise, and with it the scale of all."""
    from engine.kernels.triton_kernels import TritonKernels

    shape = HeadShape(heads, kv_heads, head_dim)
    layout = KVLayout(16, 2, kv_heads, head_dim, FP8, scales)
    static = torch.rand(2, 2, kv_heads) * 0.1 + 0.01 if scales == "static" else None
    caches = [Fp8Cache(layout, 10, CUDA, static) for _ in range(2)]
    norms = HeadNorms(*torch.rand(2, head_dim, device=CUDA).to(dtype), 1e-6)
    angles = torch.randn(40, 1, head_dim // 2, device=CUDA)
    cos, sin = angles.cos(), angles.sin()
    rope = Rotation(torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype))
    tokens = torch.randperm(160, device=CUDA)[:40]
    slots = tokens // 16 * 32 + tokens % 16
    qkv = torch.randn(40, (heads + 2 * kv_heads) * head_dim, device=CUDA).to(dtype)
    for kernels, cache in zip(
        (TritonKernels(launches_dependently(CUDA)), TorchKernels()), caches, strict=True
    ):
        kernels.heads(qkv.clone(), shape, norms, rope, 1, cache, slots)
    rows = caches[0].head_rows(slots[None])
    for one, other in zip(
        *([read(1, rows, torch.float32) for read in (c.keys, c.values)] for c in caches),
        strict=True,
    ):
        assert other.count_nonzero() > 0.9 * other.numel()
        if dtype == torch.float32 or scales == "static":
            assert (one == other).float().mean() > (0.99 if dtype == torch.float32 else 0.8)
        # Another rounding before is at most another neighbour among the eight-bit numbers.
        torch.testing.assert_close(one, other, atol=0.02, rtol=0.13)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_give_the_tokens_of_single_steps(dtype: str, tmp_path: Path) -> None:
    save_random_model("llama3", tmp_path)
    options = EngineOptions(dtype, PAGE_SIZE, kv_cache_dtype="fp8_e4m3", max_running_requests=4)
    runner = load_model_runner(tmp_path, options, lambda _: 200, CUDA)
    assert runner.layout.dtype == FP8
    prompt = prompt_of(100, runner.config.vocab_size)
    sampling = Sampling(temperature=0.0)
    tokens = Sequences(runner).generate(prompt, 12)
    sequences = Sequences(runner)
    pages = sequences.pages(len(prompt) + 12)
    again = list(prompt)
    while len(again) < len(prompt) + 12:  # each step computes all anew, as a prompt
        again += runner.run([Slice(again, 0, pages, sampling)])
    if dtype == "float32":
        assert again[len(prompt) :] == tokens
    assert len(tokens) == 12
