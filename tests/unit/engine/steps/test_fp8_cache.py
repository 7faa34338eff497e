"""FP8 pages: where values and scales lie, and that C does to the bit what torch does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.cache.fp8 import SMALLEST_SCALE, from_fp8, scales_of, to_fp8
from engine.cache.fp8_cache import Fp8Cache
from engine.cache.native_fp8_cache import NativeFp8Cache
from protocol.layout import FP8, KVLayout, Scales
from tests.support.engine.driving import CPU
from tests.support.engine.native import compiled

TOKENS = 40


def hard_heads(head_dim: int) -> tuple[Tensor, Tensor]:
    """K and V of any size, with ties, zeros, and what is no number."""
    chance = torch.Generator().manual_seed(3)
    sizes = torch.rand(TOKENS, 3, 1, generator=chance).pow(8) * 10
    key, value = torch.randn(2, TOKENS, 3, head_dim, generator=chance)
    key, value = key * sizes, value * 1e-3
    key[0], key[1, 0, 2], key[2, 1] = 0.0, torch.nan, torch.inf
    value[3], value[4], value[5] = 1e-9, 1e30, torch.arange(head_dim) * 2.0**-9
    value[6] = torch.arange(head_dim) + 448 - head_dim / 2
    return key, value


def slots() -> Tensor:
    tokens = torch.randperm(80, generator=torch.Generator().manual_seed(4))[:TOKENS]
    return tokens // 4 * 8 + tokens % 4


@pytest.mark.parametrize("scales", ["token", "static"])
@pytest.mark.parametrize("head_dim", [5, 16, 20, 64])
def test_c_does_what_torch_does(head_dim: int, scales: Scales) -> None:
    layout = KVLayout(4, 2, 3, head_dim * 2, FP8, scales)
    static = torch.rand(2, 2, 3) * 3 if scales == "static" else None
    plain = Fp8Cache(layout, 20, CPU, static)
    native = NativeFp8Cache(layout, 20, static, compiled())
    key, value = hard_heads(head_dim * 2)
    for cache in (plain, native):
        cache.write(1, key, value, slots())
    assert torch.equal(plain.storage, native.storage)
    assert plain.storage.count_nonzero() > TOKENS * 3 * head_dim
    rows = plain.head_rows(slots()[None])
    for one, other in (
        (plain.keys(1, rows, torch.float32), native.keys(1, rows, torch.float32)),
        (plain.values(1, rows, torch.float32), native.values(1, rows, torch.float32)),
    ):
        torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("scales", ["token", "static"])
def test_what_is_read_is_what_was_written_rounded(scales: Scales) -> None:
    layout = KVLayout(4, 2, 3, 16, FP8, scales)
    static = torch.rand(2, 2, 3) if scales == "static" else None
    cache = Fp8Cache(layout, 20, CPU, static)
    key, value = torch.randn(2, TOKENS, 3, 16)
    cache.write(1, key, value, slots())
    rows = cache.head_rows(slots()[None])
    for which, (heads, read) in enumerate(((key, cache.keys), (value, cache.values))):
        got = read(1, rows, torch.float32).view(3, TOKENS, 16).transpose(0, 1)
        its = scales_of(heads) if static is None else static[1, which].expand(TOKENS, 3)
        assert torch.equal(got, from_fp8(to_fp8(heads, its).view(torch.uint8), its))
        torch.testing.assert_close(got, heads, rtol=1 / 16, atol=0.01)
    assert cache.storage[0].count_nonzero() == 0, "another layer is not touched"


def test_a_page_of_a_layer_is_its_values_then_its_scales() -> None:
    layout = KVLayout(4, 2, 3, 16, FP8, "token")
    cache = Fp8Cache(layout, 5, CPU)
    key, value = torch.randn(2, 1, 3, 16)
    cache.write(1, key, value, torch.tensor([2 * 8 + 3]))  # page 2, token 3
    page = cache.storage[1, 2]
    assert page.is_contiguous() and len(page) == layout.layer_page_bytes
    values = page[: layout.layer_value_bytes].view(2, 4, 3, 16)
    kept = page[layout.layer_value_bytes :].view(torch.float16).view(2, 4, 3)
    for i, heads in enumerate((key, value)):
        assert torch.equal(kept[i, 3], scales_of(heads)[0])
        assert torch.equal(values[i, 3], to_fp8(heads, scales_of(heads)).view(torch.uint8)[0])
    assert cache.storage.count_nonzero() <= 2 * 3 * (16 + 2)


def test_the_greatest_number_of_a_head_keeps_its_size() -> None:
    heads = torch.randn(50, 2, 64) * torch.logspace(-1, 3, 50)[:, None, None]
    scales = scales_of(heads)
    back = from_fp8(to_fp8(heads, scales).view(torch.uint8), scales)
    greatest, kept = heads.abs().amax(-1), back.abs().amax(-1)
    torch.testing.assert_close(kept, greatest, rtol=2**-9, atol=0)
    assert float(scales_of(torch.zeros(3))) == SMALLEST_SCALE
