"""What a link has done so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvtransfer.transport import LinkStats


@dataclass
class LinkCounts:
    """Written by the link's thread, read by others; plain numbers, so a torn read cannot be."""

    bytes_moved: int = 0
    pages_moved: int = 0
    busy_s: float = 0.0
    failures: int = 0
    is_open: bool = False

    def moved(self, num_bytes: int, num_pages: int, seconds: float) -> None:
        self.bytes_moved += num_bytes
        self.pages_moved += num_pages
        self.busy_s += seconds

    def stats(self, peer: str, direction: Literal["out", "in"]) -> LinkStats:
        return LinkStats(
            peer,
            direction,
            self.is_open,
            self.bytes_moved,
            self.pages_moved,
            self.busy_s,
            self.failures,
        )
