"""`Ring`: staging buffers that are used in turn, for backends without a place of their own."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_BUFFER_BYTES = 1 << 20
"""No buffer is allocated smaller than this, unless no message can be as long."""


class Ring:
    """A circle of buffers. There is no call to give one back: the caller must no longer use a
    buffer when its turn comes again. Each grows to the size that messages need, so a link that
    only sends short ones does not hold the memory of the longest."""

    def __init__(self, window: int, buffer_bytes: int, device: torch.device) -> None:
        """There are `window` buffers on `device`, of at most `buffer_bytes` each."""
        self._buffers: list[Tensor | None] = [None] * window
        self._buffer_bytes = buffer_bytes
        self._device = device
        self._next = 0

    def take(self, num_bytes: int) -> Tensor:
        """Returns the next buffer, cut to `num_bytes`."""
        buffer = self._buffers[self._next]
        if buffer is None or len(buffer) < num_bytes:
            size = min(max(MIN_BUFFER_BYTES, 2 * num_bytes), self._buffer_bytes)
            buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
            self._buffers[self._next] = buffer
        self._next = (self._next + 1) % len(self._buffers)
        return buffer[:num_bytes]
