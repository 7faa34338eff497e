"""What a link has done so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvtransfer.transport import LinkStats

MIN_RATED_BYTES = 1 << 20
"""A shorter frame tells latency, not bandwidth."""


@dataclass
class LinkCounts:
    """Written by the link's thread, read by others; plain numbers, so a torn read cannot be."""

    bytes_moved: int = 0
    pages_moved: int = 0
    failures: int = 0
    is_open: bool = False
    _rated_bytes: int = 0
    _rated_s: float = 0.0

    def moved(self, num_bytes: int, num_pages: int, seconds: float) -> None:
        self.bytes_moved += num_bytes
        self.pages_moved += num_pages
        if num_bytes >= MIN_RATED_BYTES:
            self._rated_bytes += num_bytes
            self._rated_s += seconds

    def stats(self, peer: str, direction: Literal["out", "in"]) -> LinkStats:
        return LinkStats(
            peer,
            direction,
            self.is_open,
            self.bytes_moved,
            self.pages_moved,
            self._rated_bytes / self._rated_s if self._rated_s else 0.0,
            self.failures,
        )
