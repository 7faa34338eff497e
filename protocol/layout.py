"""`KVLayout`: the shape of a node's KV pages. Only equal layouts exchange pages. Pure."""

from __future__ import annotations

import msgspec

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class KVLayout(msgspec.Struct, frozen=True):
    """Shape of a KV pool `[layers, pages, 2, page_size, kv_heads, head_dim]`, without its length.

    `dtype` is a torch dtype's short name (a key of `DTYPE_BYTES`).
    """

    page_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    @property
    def layer_page_bytes(self) -> int:
        """Bytes of K and V of one page in one layer: the contiguous unit of a pool."""
        elements = 2 * self.page_size * self.num_kv_heads * self.head_dim
        return elements * DTYPE_BYTES[self.dtype]

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.num_layers * self.layer_page_bytes

    def num_pages(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens, the last one possibly in part."""
        return -(-num_tokens // self.page_size)

    def describe(self) -> str:
        return (
            f"page_size={self.page_size} layers={self.num_layers} kv_heads={self.num_kv_heads} "
            f"head_dim={self.head_dim} dtype={self.dtype}"
        )

    def differences(self, other: KVLayout) -> str:
        """Names the fields in which two layouts differ, for an error a person can act on."""
        mine, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return ", ".join(
            f"{name} {mine[name]} here, {theirs[name]} there"
            for name in mine
            if mine[name] != theirs[name]
        )
