"""One `send` or `stream`: the frames it consists of, on one link or several, and its one end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvtransfer.pages.layout import FrameShape
from kvtransfer.transport import OnDone
from protocol.ids import Attempt


class PageSend:
    """Thread-safe. `on_done` is called once, when no frame is left that could still read its pages:
    with the first error, if there was one."""

    def __init__(self, transfer: Attempt, on_done: OnDone) -> None:
        self.transfer = transfer
        self._on_done = on_done
        self._lock = threading.Lock()
        self._num_open = 1  # the caller itself, until `complete`
        self._error = ""

    def add_frame(self) -> None:
        with self._lock:
            self._num_open += 1

    def frame_ended(self, error: str = "") -> None:
        self._end(error)

    def complete(self, error: str = "") -> None:
        """No frame is added after this."""
        self._end(error)

    def _end(self, error: str) -> None:
        with self._lock:
            self._num_open -= 1
            self._error = self._error or error
            ended = self._num_open == 0
        if ended:
            self._on_done(self._error)


@dataclass(frozen=True, eq=False)
class Frame:
    """Rows to be sent: `pages` (of the pool) in the layers that `shape` names."""

    sending: PageSend
    shape: FrameShape
    pages: Sequence[int]
    ready: torch.cuda.Event | None
    """They are in the pool when this event has happened; None: now."""

    @property
    def is_ready(self) -> bool:
        return self.ready is None or self.ready.query()
