"""`Arrivals`: one expected transfer, and the only writer into its pages."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvtransfer.pages.layout import FrameShape, row_numbers
from kvtransfer.pages.staging import PageRows, RowIndex
from kvtransfer.transport import OnDone, OnProgress


@dataclass(frozen=True, eq=False)
class Part:
    """Where a frame of these arrivals goes, row by row: [rows of the frame] each."""

    arrivals: Arrivals
    index: RowIndex
    """Rows of the pool."""
    places: np.ndarray
    """Rows of the transfer, which has [layers, pages] of them."""


class Arrivals:
    """A lock is held for every write and every callback: after `abort`, and after an end, no page
    is touched again and nobody is told anything."""

    def __init__(
        self,
        pages: Sequence[int],
        num_layers: int,
        num_heads: int,
        free: torch.cuda.Event | None,
        on_progress: OnProgress,
        on_done: OnDone,
    ) -> None:
        """`num_heads`: KV heads in this rank's pool, which may come from several ranks. `free`:
        until then the GPU may still be busy with what the pages held before."""
        self._pages = np.asarray(pages, dtype=np.int64)
        self._missing = np.full((num_layers, len(pages)), num_heads)
        """Heads of each row that have not arrived."""
        self._missing_rows = np.full(len(pages), num_layers)
        """Rows of each page that are not complete."""
        self._num_pages = len(pages)
        self._free = free
        self._num_leading = 0
        self._on_progress = on_progress
        self._on_done = on_done
        self._links: set[object] = set()
        """Those that announced a part."""
        self._ended = False
        self._lock = threading.Lock()

    def announce(self, shape: FrameShape, link: object, pool: PageRows) -> Part | None:
        """`link` is about to bring a frame, and its loss ends this; None: nobody wants the frame
        (any more)."""
        with self._lock:
            if self._ended:
                return None
            pages = self._pages[shape.offset : shape.offset + shape.num_pages]
            if len(pages) < shape.num_pages:
                self._end("pages came that nobody asked for")
                return None
            self._links.add(link)
        places = row_numbers(shape, range(shape.offset, shape.offset + len(pages)), self._num_pages)
        return Part(self, pool.index(row_numbers(shape, pages, pool.num_pages)), places)

    def write(self, part: Part, rows: range, pool: PageRows, staging: Tensor) -> None:
        """Writes one message of a frame: `rows` of `part`, each of the pool's KV heads."""
        message = slice(rows.start, rows.stop)
        with self._lock:
            if self._ended:
                return
            if self._free is not None:
                torch.cuda.current_stream().wait_event(self._free)
            pool.scatter(part.index[message], staging)
            if self._count(part.places[message], pool.num_heads):
                self._look_at_leading()
            else:
                self._end("a page came twice")

    def fail(self, reason: str) -> None:
        with self._lock:
            if not self._ended:
                self._end(reason)

    def link_lost(self, link: object, reason: str) -> None:
        with self._lock:
            if link in self._links and not self._ended:
                self._end(reason)

    def abort(self) -> None:
        with self._lock:
            self._ended = True

    def _count(self, places: np.ndarray, num_heads: int) -> bool:
        """False: what has just arrived was here before."""
        left = self._missing.ravel()[places] - num_heads
        self._missing.ravel()[places] = left
        complete = places[left == 0] % self._num_pages
        self._missing_rows -= np.bincount(complete, minlength=self._num_pages)
        return bool((left >= 0).all())

    def _look_at_leading(self) -> None:
        before, total = self._num_leading, self._num_pages
        while self._num_leading < total and self._missing_rows[self._num_leading] == 0:
            self._num_leading += 1
        if self._num_leading == total:
            self._end("")
        elif self._num_leading > before:
            self._on_progress(self._num_leading)

    def _end(self, error: str) -> None:
        self._ended = True
        self._on_done(error)
