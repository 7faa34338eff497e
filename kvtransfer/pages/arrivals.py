"""`Arrivals`: one expected transfer. It alone writes into the transfer's pages."""

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
    """Where a frame of a transfer goes. A row is one page of one layer."""

    arrivals: Arrivals
    index: RowIndex
    """[rows of the frame]: the pool's row into which each is written."""
    places: np.ndarray
    """[rows of the frame] int64: which row of the transfer each is; the transfer has
    [layers, pages] rows, numbered layer after layer."""


class Arrivals:
    """Writes a transfer's rows into the pool and counts what is missing. Thread-safe.

    Links of several ranks bring parts of one transfer on threads of their own. A lock is held for
    every write and every callback, so once `abort` has returned, or the transfer has ended, no
    page is written and no callback is called again: the pages may then belong to others.
    """

    def __init__(
        self,
        pages: Sequence[int],
        num_layers: int,
        num_heads: int,
        free: torch.cuda.Event | None,
        on_progress: OnProgress,
        on_done: OnDone,
    ) -> None:
        """Page i of the transfer goes into pool page `pages[i]`.

        `num_heads` is the number of KV heads in this rank's pool, which may come from several
        ranks. Until the event `free`, if there is one, the GPU may still use the pages for what
        they held before.
        """
        self._pages = np.asarray(pages, dtype=np.int64)
        self._missing = np.full((num_layers, len(pages)), num_heads)
        """[layers, pages]: how many KV heads of each row have not arrived."""
        self._missing_rows = np.full(len(pages), num_layers)
        """[pages]: how many rows of each page are not complete."""
        self._num_pages = len(pages)
        self._free = free
        self._num_leading = 0
        self._on_progress = on_progress
        self._on_done = on_done
        self._links: set[object] = set()
        """The links that announced a part of the transfer; the loss of any of them ends it."""
        self._ended = False
        self._lock = threading.Lock()

    def announce(self, shape: FrameShape, link: object, pool: PageRows) -> Part | None:
        """Returns where a frame goes that `link` is about to bring into `pool`; None: the transfer
        is over, and nobody wants the frame.

        From now on the loss of `link` ends the transfer. So does a frame with pages beyond it.
        """
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
        """Writes one message of a frame into `pool`, unless the transfer has ended.

        `rows` says which of the frame's rows the message has. `pool` is cut to the KV heads that
        the link brings. Calls back if more leading pages, or all pages, are complete now.
        """
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
        """Ends the transfer with an error, unless it has ended."""
        with self._lock:
            if not self._ended:
                self._end(reason)

    def link_lost(self, link: object, reason: str) -> None:
        """Ends the transfer with an error if `link` announced a part of it, even if all of that
        part has arrived: only the sender knows whether more was to come."""
        with self._lock:
            if link in self._links and not self._ended:
                self._end(reason)

    def abort(self) -> None:
        """Ends the transfer without a callback; waits for a write or callback that is going on."""
        with self._lock:
            self._ended = True

    def _count(self, places: np.ndarray, num_heads: int) -> bool:
        """Counts `num_heads` KV heads of the rows at `places`. Returns False if one of those rows
        is complete already, so that its sender cannot be trusted."""
        left = self._missing.ravel()[places] - num_heads
        self._missing.ravel()[places] = left
        # Rows are numbered layer after layer, so the remainder is the row's page.
        complete = places[left == 0] % self._num_pages
        self._missing_rows -= np.bincount(complete, minlength=self._num_pages)
        return bool((left >= 0).all())

    def _look_at_leading(self) -> None:
        """Calls back if there are more complete pages without a gap before them than before."""
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
