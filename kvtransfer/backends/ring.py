"""`Ring`: staging buffers in a circle, for backends that have no better place for them."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_BUFFER_BYTES = 1 << 20


class Ring:
    """`window` buffers, as large as what they were last needed for. Used in order: the caller gives
    each back (by no longer using it) before its turn comes again."""

    def __init__(self, window: int, buffer_bytes: int, device: torch.device) -> None:
        self._buffers: list[Tensor | None] = [None] * window
        self._buffer_bytes = buffer_bytes
        self._device = device
        self._next = 0

    def take(self, num_bytes: int) -> Tensor:
        """The next buffer, cut to `num_bytes`."""
        buffer = self._buffers[self._next]
        if buffer is None or len(buffer) < num_bytes:
            size = min(max(MIN_BUFFER_BYTES, 2 * num_bytes), self._buffer_bytes)
            buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
            self._buffers[self._next] = buffer
        self._next = (self._next + 1) % len(self._buffers)
        return buffer[:num_bytes]
