"""`PagePool`: which pages of a KV pool are free. Pure accounting; knows no content."""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """Gives out the page indices 0 … num_pages - 1. Each is free or given out exactly once."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        # A stack, lowest index on top: pages freed last are reused first, while still in caches.
        self._free = list(range(num_pages - 1, -1, -1))
        self._is_free = bytearray(b"\x01" * num_pages)

    @property
    def num_free(self) -> int:
        """The number of free pages."""
        return len(self._free)

    def allocate(self, count: int) -> list[int] | None:
        """Returns `count` pages, which are no longer free; None, and no change, if fewer are
        free."""
        if count > len(self._free):
            return None
        if count == 0:
            return []
        pages = self._free[: -count - 1 : -1]
        del self._free[-count:]
        for page in pages:
            self._is_free[page] = 0
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Takes back pages that were given out."""
        for page in pages:
            assert not self._is_free[page], f"page {page} freed twice"
            self._is_free[page] = 1
            self._free.append(page)
