"""`CopyStreams`: the CUDA streams on which the links of a rank copy pages."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

HIGH_PRIORITY = -1
"""A CUDA stream with it has its blocks computed before the waiting ones of other streams."""


class CopyStreams:
    """Streams that links take in turn. Each is used by one link at a time.

    Torch keeps a buffer that was freed for the stream that it was made on. A link that takes the
    stream of one that has ended therefore finds its staging buffers; on a new stream it would take
    as much of the GPU's memory again, up to 200 MB
    (`benchmarks/results/elastic-pairs-h200.json`: a pair that was made again took none).
    """

    def __init__(self, make: Callable[[], torch.cuda.Stream]) -> None:
        """`make` makes another stream when all are in use."""
        self._make = make
        self._free: list[torch.cuda.Stream] = []
        self._lock = threading.Lock()

    @classmethod
    def of(cls, device: torch.device) -> CopyStreams:
        """Returns the streams of a CUDA device. They have high priority, so that no copy waits for
        what is being computed. Makes none yet."""
        return cls(lambda: torch.cuda.Stream(device, HIGH_PRIORITY))

    def take(self) -> torch.cuda.Stream:
        """Returns the stream that was given back last, or a new one."""
        with self._lock:
            return self._free.pop() if self._free else self._make()

    def give_back(self, stream: torch.cuda.Stream) -> None:
        """Lets another link take the stream. What was begun on it may still be under way."""
        with self._lock:
            self._free.append(stream)
