"""`PageRows`: copies rows of a KV pool into and out of contiguous staging buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from kvtransfer.pages.copy_streams import CopyStreams
from protocol.layout import KVLayout

RowIndex = np.ndarray | Tensor
"""[rows] int64: numbers of rows, on the device where the copy needs them. It can be sliced."""


class PageRows:
    """A KV pool seen as rows: one per layer and page, cut to some of the pool's KV heads.

    A row is the values of these heads, then their scales, if pages have scales. A staging buffer is
    [bytes] uint8 on any device and has row after row. On CUDA copies run on a stream of their own.
    """

    def __init__(
        self, pool: Tensor, layout: KVLayout, heads: range, streams: CopyStreams | None = None
    ) -> None:
        """`pool` is [layers, pages, …], contiguous, as `layout` describes it; `heads` are numbered
        as in the pool. Nothing is copied: writes go into the pool itself. `streams` are those of
        all links of the pool's device."""
        self.num_layers, self.num_pages = pool.shape[:2]
        rows = pool.flatten(0, 1).flatten(1).view(torch.uint8)  # [layers * pages, bytes]
        assert rows.shape[1] == layout.layer_page_bytes
        self.num_heads = len(heads)
        self.row_bytes = layout.layer_page_bytes * len(heads) // layout.num_kv_heads
        self._device = pool.device
        self._parts = _parts(rows, layout, heads)
        """The places of a row, [rows, …] each, one behind the other in a staging buffer."""
        self._streams = streams or CopyStreams.of(pool.device)
        self._stream: torch.cuda.Stream | None = None
        """The one that was taken last; None before that, and on a CPU."""
        self._plain: np.ndarray | None = None
        if len(heads) == layout.num_kv_heads and not rows.is_cuda:
            # numpy copies whole rows, twice as fast as torch's index_copy_ on a CPU.
            self._plain = rows.numpy()

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Makes a CUDA stream for the copies the current one. All other methods and the pair's must
        be called within this context."""
        if self._device.type != "cuda":
            yield
            return
        self._stream = self._streams.take()
        try:
            # The thread's GPU too: at its end, the context of a stream makes the GPU current again
            # that was so before, in a new thread the first one, of which that takes memory.
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                yield
        finally:
            self._streams.give_back(self._stream)

    def index(self, numbers: np.ndarray) -> RowIndex:
        """Returns row numbers ([rows] int64) in the form that `gather` and `scatter` take.

        On CUDA this copies them to the device, so it is done once per transfer.
        """
        if self._plain is not None:
            return numbers
        index = torch.from_numpy(numbers)
        if self._device.type == "cuda":  # from pinned memory, so that this thread need not wait
            return index.pin_memory().to(self._device, non_blocking=True)
        return index

    def gather(self, rows: RowIndex, staging: Tensor) -> None:
        """Copies rows of the pool into `staging`, which they must fill exactly."""
        if isinstance(rows, np.ndarray):
            assert self._plain is not None
            out = staging.numpy().reshape(len(rows), self.row_bytes)
            # With numpy's default mode, "raise", `out` is buffered: everything is copied twice.
            np.take(self._plain, rows, axis=0, out=out, mode="clip")
            return
        for part, target in self._staged(len(rows), staging):
            if target.device == part.device and target.is_contiguous():
                torch.index_select(part, 0, rows, out=target)
            else:
                target.copy_(part.index_select(0, rows))

    def scatter(self, rows: RowIndex, staging: Tensor) -> None:
        """Copies `staging` into rows of the pool. On CUDA they are complete after `finish_copies`.

        The buffer is free on return for what comes next on the stream, or from the host.
        """
        if isinstance(rows, np.ndarray):
            assert self._plain is not None
            self._plain[rows] = staging.numpy().reshape(len(rows), self.row_bytes)
            return
        staging = staging.to(self._device)
        for part, source in self._staged(len(rows), staging):
            part.index_copy_(0, rows, source)

    def finish_copies(self) -> None:
        """Waits until all copies that were begun are complete. Any thread may call it.

        The model reads the pages on another stream, which knows nothing of this one.
        """
        if self._stream is not None:
            self._stream.synchronize()

    def _staged(self, num_rows: int, staging: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields each part of the pool with its place in the staged rows, of equal shapes but for
        the number of rows."""
        buffer, begin = staging.view(num_rows, self.row_bytes), 0
        for part in self._parts:
            end = begin + part[0].numel() * part.element_size()
            yield part, buffer[:, begin:end].view(part.dtype).unflatten(1, part.shape[1:])
            begin = end


def _parts(rows: Tensor, layout: KVLayout, heads: range) -> list[Tensor]:
    """Returns views of `rows` [rows, bytes] that together have all that belongs to `heads`."""
    if len(heads) == layout.num_kv_heads:
        return [_wide(rows, layout.layer_page_bytes)]
    shape, its = (2, layout.page_size, layout.num_kv_heads), slice(heads.start, heads.stop)
    values, scales = rows.tensor_split([layout.layer_value_bytes], dim=1)
    values = values.unflatten(1, (*shape, layout.head_bytes))[:, :, :, its]
    row_bytes = layout.layer_page_bytes * len(heads) // layout.num_kv_heads
    parts = [_wide(values, layout.head_bytes, layout.layer_page_bytes, row_bytes)]
    if layout.scale_bytes:
        scales = scales.unflatten(1, (*shape, layout.scale_bytes))[:, :, :, its]
        parts.append(scales.view(torch.int16))
    return parts


def _wide(part: Tensor, *distances: int) -> Tensor:
    """Returns `part` as elements of 8 bytes, if all distances between them allow that: longer
    elements are copied faster, and no dtype needs a kernel of its own."""
    return part.view(torch.int64) if all(d % 8 == 0 for d in distances) else part
