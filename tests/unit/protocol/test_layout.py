"""The sizes of pages, and what keeps pages of one form from those of another."""

from __future__ import annotations

import msgspec
import pytest

from protocol.hashing import chain_start
from protocol.layout import FP8, KVLayout

HALF = KVLayout(page_size=16, num_layers=32, num_kv_heads=8, head_dim=128, dtype="bfloat16")
STATIC = msgspec.structs.replace(HALF, dtype=FP8, scales="static")
TOKEN = msgspec.structs.replace(HALF, dtype=FP8, scales="token")


def test_fp8_halves_a_page_and_scales_add_two_bytes_per_token_and_head() -> None:
    assert STATIC.page_bytes * 2 == HALF.page_bytes == 2 << 20
    assert TOKEN.page_bytes - STATIC.page_bytes == 32 * 2 * 16 * 8 * 2
    assert TOKEN.layer_page_bytes - TOKEN.layer_value_bytes == 2 * 16 * 8 * TOKEN.scale_bytes
    assert TOKEN.page_bytes / HALF.page_bytes == (128 + 2) / 256


def test_pages_of_another_form_have_other_hashes_and_the_difference_has_a_name() -> None:
    assert len({chain_start("model", layout) for layout in (HALF, STATIC, TOKEN)}) == 3
    says = HALF.differences(TOKEN)
    assert says == f"dtype bfloat16 here, {FP8} there, scales none here, token there"
    assert STATIC.differences(TOKEN) == "scales static here, token there"


@pytest.mark.parametrize(("dtype", "scales"), [("float32", "token"), (FP8, ""), (FP8, "row")])
def test_a_form_that_no_honest_node_has_is_not_believed(dtype: str, scales: str) -> None:
    told = msgspec.structs.asdict(HALF) | {"dtype": dtype, "scales": scales}
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=KVLayout)
