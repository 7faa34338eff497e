"""How a model is split over tensor-parallel ranks, in numbers. Pure."""

from __future__ import annotations

from engine.model.config import ModelConfig
from engine.model.families import UnsupportedModel


def part(total: int, size: int, what: str) -> int:
    """Returns how many of `total` things each of `size` ranks has. Raises UnsupportedModel if they
    cannot be split."""
    if total % size:
        raise UnsupportedModel(
            f"the model's {total} {what} cannot be split over {size} ranks; choose a "
            f"--tensor-parallel-size that divides {total}"
        )
    return total // size


def shares_kv_heads(num_kv_heads: int, size: int) -> bool:
    """Returns True if there are more ranks than KV heads, so that several ranks have the same
    one."""
    return size > num_kv_heads and size % num_kv_heads == 0


def require_split(config: ModelConfig, size: int) -> None:
    """Raises UnsupportedModel unless `size` ranks can compute the model together."""
    part(config.num_heads, size, "attention heads")
    if not shares_kv_heads(config.num_kv_heads, size):
        part(config.num_kv_heads, size, "KV heads")
    if not all(layer.has_experts for layer in config.layers):
        part(config.intermediate_size, size, "feed-forward dimensions")
    if config.experts is not None:
        part(config.experts.intermediate_size, size, "dimensions of an expert")
