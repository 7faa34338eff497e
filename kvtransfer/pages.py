"""Pages between a pool and contiguous staging: one kernel each way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gather(pool: Tensor, pages: Sequence[int], device: torch.device) -> Tensor:
    """Copies pages of `pool` [layers, pages, …] into new staging [bytes] uint8 on `device`.

    The copy is complete on return, so the pages may change at once.
    """
    index = torch.tensor(pages, dtype=torch.int64, device=pool.device)
    staging = pool.index_select(1, index).to(device)
    if staging.device.type == "cuda":
        torch.cuda.current_stream(staging.device).synchronize()
    return staging.view(torch.uint8).flatten()


def new_staging(pool: Tensor, num_pages: int, device: torch.device) -> Tensor:
    """Uninitialised staging [bytes] uint8 for `num_pages` pages of `pool`."""
    page_bytes = pool[:, 0].numel() * pool.element_size()
    return torch.empty(num_pages * page_bytes, dtype=torch.uint8, device=device)


def scatter(pool: Tensor, pages: Sequence[int], staging: Tensor) -> None:
    """Copies staging (as `gather` makes it) into `pages` of `pool`; complete on return."""
    index = torch.tensor(pages, dtype=torch.int64, device=pool.device)
    shape = (pool.shape[0], len(pages), *pool.shape[2:])
    source = staging.view(pool.dtype).view(shape).to(pool.device)
    pool.index_copy_(1, index, source)
    if pool.device.type == "cuda":
        torch.cuda.current_stream(pool.device).synchronize()
