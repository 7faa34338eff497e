"""What the links to or from one peer have done so far. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvtransfer.transport import LinkStats

MIN_RATED_BYTES = 1 << 20
"""A shorter burst tells latency, not bandwidth."""


@dataclass
class LinkCounts:
    """Written by the link's thread, read by others; plain numbers, so a torn read cannot be."""

    transport: str = ""
    is_open: bool = False
    bytes_moved: int = 0
    busy_s: float = 0.0
    failures: int = 0
    _since: float = 0.0
    _burst_bytes: int = 0
    _burst_s: float = 0.0
    _rated_bytes: int = 0
    _rated_s: float = 0.0

    def began(self, now: float) -> None:
        """After a pause there are bytes under way again."""
        self._since, self._burst_bytes, self._burst_s = now, 0, 0.0

    def moved(self, num_bytes: int, now: float) -> None:
        """One more message of this burst has ended."""
        seconds, self._since = now - self._since, now
        self.bytes_moved += num_bytes
        self.busy_s += seconds
        self._burst_bytes += num_bytes
        self._burst_s += seconds
        if self._burst_bytes >= MIN_RATED_BYTES:
            self._rated_bytes += self._burst_bytes
            self._rated_s += self._burst_s
            self._burst_bytes, self._burst_s = 0, 0.0

    def stats(self, peer: str, direction: Literal["out", "in"], page_bytes: int) -> LinkStats:
        """`page_bytes`: of a page in this rank's pool."""
        return LinkStats(
            peer=peer,
            direction=direction,
            transport=self.transport,
            is_open=self.is_open,
            bytes_moved=self.bytes_moved,
            pages_moved=self.bytes_moved // page_bytes,
            busy_s=self.busy_s,
            bytes_per_s=self._rated_bytes / self._rated_s if self._rated_s else 0.0,
            failures=self.failures,
        )
