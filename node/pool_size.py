"""Decides how many KV pages a rank has room for."""

from __future__ import annotations

import torch

from engine.cache.kv_cache import num_pages_that_fit
from node.config import NodeConfig
from node.resources import host_memory_bytes
from protocol.config import ConfigError
from protocol.layout import KVLayout

GIB = 1 << 30
CPU_POOL_TOKENS = 131_072
"""A CPU node shares its memory with others, so it takes no larger pool unless it is told to."""


def pool_pages(config: NodeConfig, layout: KVLayout, device: torch.device) -> int:
    """Returns how many pages of `layout`, that of this rank's pool, fit into what memory is left.
    It must be called when the weights are loaded. Raises ConfigError."""
    available, total = memory_bytes(device)
    if config.max_total_tokens:
        return _told_pages(config, layout, device, available)
    if device.type == "cpu":  # shared with everything else on this host, the other ranks first
        share = config.memory_share / config.tensor_parallel_size
        budget = available * config.mem_fraction_static * share
        limit = layout.num_pages(CPU_POOL_TOKENS)
    else:
        kept_free = total * (1 - config.mem_fraction_static)
        share = (total - kept_free) * config.memory_share - taken_bytes(device)
        budget = min(available - kept_free, share)
        limit = int(total) // layout.page_bytes
    num_pages = min(num_pages_that_fit(layout, int(budget)), limit)
    if num_pages < 1:
        raise ConfigError(
            f"there is no memory for a KV page of {layout.page_bytes} bytes on {device}; "
            "raise --mem-fraction-static, give nodes that share a device their --memory-share "
            "(as 0.5), or free some memory"
        )
    return num_pages


def _told_pages(config: NodeConfig, layout: KVLayout, device: torch.device, available: int) -> int:
    """Returns the pages of --max-total-tokens. Raises ConfigError if they do not fit into the
    memory that is `available`."""
    num_pages = layout.num_pages(config.max_total_tokens)
    num_sharing = config.tensor_parallel_size if device.type == "cpu" else 1
    needed = num_pages * layout.page_bytes * num_sharing
    if needed > available:
        most = num_pages_that_fit(layout, available // num_sharing) * layout.page_size
        raise ConfigError(
            f"--max-total-tokens is {config.max_total_tokens}, which needs {needed / GIB:.1f} GiB "
            f"for KV pages, and {available / GIB:.1f} GiB of memory are free on {device}; at most "
            f"{most} tokens fit"
        )
    return num_pages


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """Returns how much memory of `device` is free, and how much it has in all, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    return host_memory_bytes()


def taken_bytes(device: torch.device) -> int:
    """Returns how many bytes of a GPU this process has taken: those of its weights."""
    return torch.cuda.memory_allocated(device)
