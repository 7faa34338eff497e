"""`KVLayout`: the shape of a node's KV pages. Only equal layouts exchange pages. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from protocol.trust.bounds import Size

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class KVLayout(msgspec.Struct, frozen=True):
    """The shape of the pages in a KV pool `[layers, pages, 2, page_size, kv_heads, head_dim]`.

    The 2 are K and V. Tensor-parallel ranks tell the layout of the whole model, not of their part.
    """

    page_size: Size
    """Tokens per page."""
    num_layers: Size
    num_kv_heads: Size
    head_dim: Size
    dtype: Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(DTYPE_BYTES)})$")]
    """A torch dtype's short name, a key of `DTYPE_BYTES`."""

    @property
    def layer_page_bytes(self) -> int:
        """The bytes of K and V of one page in one layer, which are contiguous in a pool."""
        elements = 2 * self.page_size * self.num_kv_heads * self.head_dim
        return elements * DTYPE_BYTES[self.dtype]

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
        )

    def differences(self, other: KVLayout) -> str:
        """Returns the fields in which the layouts differ, as text for an error message; `other` is
        the peer's."""
        mine, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return ", ".join(
            f"{name} {mine[name]} here, {theirs[name]} there"
            for name in mine
            if mine[name] != theirs[name]
        )
