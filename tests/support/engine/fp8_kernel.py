"""A Triton kernel that rounds numbers to bytes and back, and numbers that show how. It is imported
where Triton is installed, after the interpreter was chosen or not."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.cache.fp8 import to_fp8
from engine.cache.triton_pages import narrowed, widened

SIZE = 2048


@triton.jit
def convert(numbers, codes, back, BLOCK: tl.constexpr, HAS_FP8: tl.constexpr):
    places = tl.arange(0, BLOCK)
    code = narrowed(tl.load(numbers + places), HAS_FP8)
    tl.store(codes + places, code)
    tl.store(back + places, widened(code, tl.float32, HAS_FP8))


def check_conversions(device: torch.device, has_fp8: bool) -> None:
    """Every code, every tie and its neighbours, and what is too large or too small."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    low, high = every[:126], every[1:127]
    ties = (low + high) / 2
    near = torch.cat((ties.nextafter(low), ties, ties.nextafter(high)))
    edges = torch.tensor([1e30, torch.inf, torch.nan, 1e-30, 448.1, 464.1])
    numbers = torch.cat((every, near, -near, edges, -edges))
    numbers = torch.cat((numbers, torch.randn(SIZE - len(numbers)))).to(device)
    codes = torch.empty(SIZE, dtype=torch.uint8, device=device)
    back = torch.empty(SIZE, device=device)
    convert[(1,)](numbers, codes, back, BLOCK=SIZE, HAS_FP8=has_fp8)
    expected = to_fp8(numbers.cpu()[:, None], torch.ones(SIZE))[:, 0]
    assert_same_numbers(codes.cpu().view(torch.float8_e4m3fn).float(), expected.float())
    assert_same_numbers(back.cpu(), expected.float())


def assert_same_numbers(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)
