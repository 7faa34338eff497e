"""`Sending`: one `send` or `stream` of a transport, made of frames on one link or several."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch

from kvtransfer.pages.layout import FrameShape
from kvtransfer.pages.transfer_rows import TransferRows
from kvtransfer.transport import OnDone
from protocol.ids import Attempt


class PageSend:
    """Counts the frames of a `send` or `stream` that have not ended. Thread-safe.

    It calls `on_done` once, with the first error if there was one, when no frame is left. Then
    nothing reads the pages any more, and they may be given to others.
    """

    def __init__(self, transfer: Attempt, on_done: OnDone) -> None:
        self.transfer = transfer
        self._on_done = on_done
        self._lock = threading.Lock()
        # The caller counts as one until `complete`: else frames that end quickly would end it all
        # before the next ones are added.
        self._num_open = 1
        self._error = ""

    def add_frame(self) -> None:
        """Counts one more frame; for several links, once for each."""
        with self._lock:
            self._num_open += 1

    def frame_ended(self, error: str = "") -> None:
        """Says that a frame will not be read from the pool again; `error` is "" if it was sent."""
        self._end(error)

    def complete(self, error: str = "") -> None:
        """Says that no frame will be added. A stream that was given up has an `error`."""
        self._end(error)

    def _end(self, error: str) -> None:
        with self._lock:
            self._num_open -= 1
            self._error = self._error or error
            ended = self._num_open == 0
        if ended:  # outside of the lock: the callback may do anything
            self._on_done(self._error)


@dataclass(frozen=True, eq=False)
class Frame:
    """Rows to be sent: some pages, in the layers that `shape` names."""

    sending: PageSend
    shape: FrameShape
    """Which pages and layers of the transfer these are."""
    rows: TransferRows
    """Where the pages are in the sender's pool, with those of the other frames."""
    ready: torch.cuda.Event | None
    """The rows are in the pool when this event has happened; None: they are now."""

    @property
    def is_ready(self) -> bool:
        """True if the rows are in the pool. Does not wait."""
        return self.ready is None or self.ready.query()
