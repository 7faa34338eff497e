"""`PageRows`: copies rows of a KV pool into and out of contiguous staging buffers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

HIGH_PRIORITY = -1
"""A CUDA stream with it has its blocks computed before the waiting ones of other streams."""
RowIndex = np.ndarray | Tensor
"""[rows] int64: numbers of rows, on the device where the copy needs them. It can be sliced."""


class PageRows:
    """A KV pool seen as rows: one per layer and page, cut to some of the pool's KV heads.

    A staging buffer is [bytes] uint8 on any device and has row after row. On CUDA copies run on a
    stream of their own, with high priority, so that none waits for what is being computed.
    """

    def __init__(self, pool: Tensor, heads: slice) -> None:
        """`pool` is [layers, pages, 2, page_size, kv_heads, head_dim]; `heads` are numbered as in
        the pool. Nothing is copied: writes go into the pool itself."""
        self.num_layers, self.num_pages = pool.shape[:2]
        rows = pool.flatten(0, 1)[:, :, :, heads]  # [layers * pages, 2, page_size, heads, head_dim]
        head_bytes = rows.shape[-1] * rows.element_size()
        # Longer elements are copied faster, and no dtype needs a kernel of its own.
        self._rows = rows.view(torch.int64) if head_bytes % 8 == 0 else rows
        self.num_heads = rows.shape[3]
        self.row_bytes = rows[0].numel() * rows.element_size()
        self._stream = torch.cuda.Stream(pool.device, HIGH_PRIORITY) if pool.is_cuda else None
        self._plain: np.ndarray | None = None
        if rows.is_contiguous() and not rows.is_cuda:
            # numpy copies whole rows, twice as fast as torch's index_copy_ on a CPU.
            self._plain = rows.flatten(1).view(torch.uint8).numpy()

    def on_stream(self) -> AbstractContextManager[None]:
        """Returns a context in which the copies' CUDA stream is the current one. All other methods
        and the pair's must be called within it."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def index(self, numbers: np.ndarray) -> RowIndex:
        """Returns row numbers ([rows] int64) in the form that `gather` and `scatter` take.

        On CUDA this copies them to the device, so it is done once per transfer.
        """
        if self._plain is not None:
            return numbers
        index = torch.from_numpy(numbers)
        if self._rows.is_cuda:  # from pinned memory, so that this thread does not wait for the copy
            return index.pin_memory().to(self._rows.device, non_blocking=True)
        return index

    def gather(self, rows: RowIndex, staging: Tensor) -> None:
        """Copies rows of the pool into `staging`, which they must fill exactly."""
        if isinstance(rows, np.ndarray):
            assert self._plain is not None
            out = staging.numpy().reshape(len(rows), self.row_bytes)
            # With numpy's default mode, "raise", `out` is buffered: everything is copied twice.
            np.take(self._plain, rows, axis=0, out=out, mode="clip")
            return
        target = staging.view(self._rows.dtype).view(len(rows), *self._rows.shape[1:])
        if target.device == self._rows.device:
            torch.index_select(self._rows, 0, rows, out=target)
        else:
            target.copy_(self._rows.index_select(0, rows))

    def scatter(self, rows: RowIndex, staging: Tensor) -> None:
        """Copies `staging` into rows of the pool. On CUDA they are complete after `finish_copies`.

        The buffer is free on return for what comes next on the stream, or from the host.
        """
        if isinstance(rows, np.ndarray):
            assert self._plain is not None
            self._plain[rows] = staging.numpy().reshape(len(rows), self.row_bytes)
            return
        source = staging.view(self._rows.dtype).view(len(rows), *self._rows.shape[1:])
        self._rows.index_copy_(0, rows, source.to(self._rows.device))

    def finish_copies(self) -> None:
        """Waits until all copies that were begun are complete. Any thread may call it.

        The model reads the pages on another stream, which knows nothing of this one.
        """
        if self._stream is not None:
            self._stream.synchronize()
