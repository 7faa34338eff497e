"""`Arrivals`: one expected transfer. It alone writes into the transfer's pages."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvtransfer.pages.layout import FrameShape
from kvtransfer.pages.staging import PageRows, RowIndex
from kvtransfer.pages.transfer_rows import TransferRows
from kvtransfer.transport import OnDone, OnProgress


@dataclass(frozen=True, eq=False)
class Part:
    """Where a frame of a transfer goes. A row is one page of one layer."""

    arrivals: Arrivals
    shape: FrameShape
    index: RowIndex
    """[rows of the frame]: the pool's row into which each is written."""


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
        self._rows = TransferRows(pages)
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
        self._copying: set[PageRows] = set()
        """The links' pools into which copies may be under way."""
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
            if shape.offset + shape.num_pages > self._num_pages:
                self._end("pages came that nobody asked for")
                return None
            self._links.add(link)
        return Part(self, shape, self._rows.index(shape, pool))

    def write(self, part: Part, rows: range, pool: PageRows, staging: Tensor) -> None:
        """Writes one message of a frame into `pool`, unless the transfer has ended.

        `rows` says which of the frame's rows the message has. `pool` is cut to the KV heads that
        the link brings. After the frame's last message, it calls back if more leading pages, or
        all pages, are complete.
        """
        with self._lock:
            if self._ended:
                return
            if self._free is not None:
                torch.cuda.current_stream().wait_event(self._free)
            self._copying.add(pool)
            pool.scatter(part.index[rows.start : rows.stop], staging)
            # Once for the frame: on a GPU each wait for a copy would hold up the next receive.
            if rows.stop == part.shape.num_rows:
                self._finish_copies()
                if self._count(part.shape, pool.num_heads):
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
            self._finish_copies()

    def _finish_copies(self) -> None:
        """Waits until nothing writes into the pages any more."""
        for pool in self._copying:
            pool.finish_copies()
        self._copying.clear()

    def _count(self, shape: FrameShape, num_heads: int) -> bool:
        """Counts `num_heads` KV heads of all rows of a frame. Returns False if one of those rows
        is complete already, so that its sender cannot be trusted."""
        pages = slice(shape.offset, shape.offset + shape.num_pages)
        left = self._missing[shape.first_layer : shape.first_layer + shape.num_layers, pages]
        left -= num_heads
        self._missing_rows[pages] -= (left == 0).sum(axis=0)
        return bool((left >= 0).all())

    def _look_at_leading(self) -> None:
        """Calls back if there are more complete pages without a gap before them than before."""
        before, total = self._num_leading, self._num_pages
        incomplete = self._missing_rows[before:] > 0
        self._num_leading += int(incomplete.argmax()) if incomplete.any() else total - before
        if self._num_leading == total:
            self._end("")
        elif self._num_leading > before:
            self._on_progress(self._num_leading)

    def _end(self, error: str) -> None:
        self._ended = True
        self._finish_copies()
        self._on_done(error)
