"""`KVLayout`: the shape of a node's KV pages. Only equal layouts exchange pages. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from protocol.trust.bounds import Size

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The dtypes that a model can be computed in."""
FP8 = "float8_e4m3fn"
PAGE_DTYPE_BYTES = {**DTYPE_BYTES, FP8: 1}
"""The dtypes that K and V can have in pages."""
TOKEN_SCALE_BYTES = 2
"""A scale of `token` is a float16."""
Scales = Literal["", "static", "token"]
"""What the values in pages are to be multiplied by: nothing; numbers that belong to the model, one
for K and one for V of each layer and head; numbers in the page, one for K and one for V of each
token and head."""


class KVLayout(msgspec.Struct, frozen=True):
    """The shape of the pages in a KV pool `[layers, pages, 2, page_size, kv_heads, head_dim]`.

    The 2 are K and V. Tensor-parallel ranks tell the layout of the whole model, not of their part.
    With scales per token, a page of a layer has them, [2, page_size, kv_heads], behind its values.
    """

    page_size: Size
    """Tokens per page."""
    num_layers: Size
    num_kv_heads: Size
    head_dim: Size
    dtype: Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(PAGE_DTYPE_BYTES)})$")]
    """A torch dtype's short name, a key of `PAGE_DTYPE_BYTES`."""
    scales: Scales = ""
    """Which scales the values have; "" exactly if `dtype` is not FP8."""

    def __post_init__(self) -> None:
        if (self.dtype == FP8) != bool(self.scales):
            raise ValueError(f"KV pages of {self.dtype} cannot have scales {self.scales!r}")

    @property
    def head_bytes(self) -> int:
        """The bytes of the values of K, or of V, of one token and head."""
        return self.head_dim * PAGE_DTYPE_BYTES[self.dtype]

    @property
    def scale_bytes(self) -> int:
        """The bytes that a page has for the scale of K, or of V, of one token and head."""
        return TOKEN_SCALE_BYTES if self.scales == "token" else 0

    @property
    def layer_value_bytes(self) -> int:
        """The bytes of the values of one page in one layer, without their scales."""
        return 2 * self.page_size * self.num_kv_heads * self.head_bytes

    @property
    def layer_page_bytes(self) -> int:
        """The bytes of K and V of one page in one layer, which are contiguous in a pool."""
        num_scales = 2 * self.page_size * self.num_kv_heads
        return self.layer_value_bytes + num_scales * self.scale_bytes

    @property
    def page_bytes(self) -> int:
        """The bytes of one page over all layers."""
        return self.num_layers * self.layer_page_bytes

    def num_pages(self, num_tokens: int) -> int:
        """Returns how many pages `num_tokens` tokens need; the last one may not be full."""
        return -(-num_tokens // self.page_size)

    def describe(self) -> str:
        """Returns all fields as text. It goes into every page hash, so changing it changes them."""
        return (
            f"page_size={self.page_size} layers={self.num_layers} kv_heads={self.num_kv_heads} "
            f"head_dim={self.head_dim} dtype={self.dtype}"
            + (f" scales={self.scales}" if self.scales else "")
        )

    def differences(self, other: KVLayout) -> str:
        """Returns the fields in which the layouts differ, as text for an error message; `other` is
        the peer's."""
        mine, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return ", ".join(
            f"{name} {mine[name] or 'none'} here, {theirs[name] or 'none'} there"
            for name in mine
            if mine[name] != theirs[name]
        )
