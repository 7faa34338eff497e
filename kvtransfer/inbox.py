"""`Inbox`: the transfers that a node expects, and the only writer into its pool from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from kvtransfer.pages import scatter
from kvtransfer.transport import OnDone
from protocol.ids import Attempt


@dataclass(eq=False)
class _Expected:
    pages: Sequence[int]
    missing: set[int]
    """Offsets that have not arrived."""
    on_done: OnDone
    link: object | None = None
    """Which link announced the newest frame."""


class Inbox:
    """Thread-safe. A frame is written under the lock that `abort` takes: after an abort, or a
    failure, no page of that transfer is touched again."""

    def __init__(self, pool: Tensor) -> None:
        self._pool = pool
        self._expected: dict[Attempt, _Expected] = {}
        self._lock = threading.Lock()

    def expect(self, transfer: Attempt, pages: Sequence[int], on_done: OnDone) -> None:
        with self._lock:
            self._expected[transfer] = _Expected(pages, set(range(len(pages))), on_done)

    def abort(self, transfer: Attempt) -> None:
        with self._lock:
            self._expected.pop(transfer, None)

    def announce(self, transfer: Attempt, link: object) -> None:
        """A frame of this transfer is about to arrive by `link`, and is lost with it."""
        with self._lock:
            expected = self._expected.get(transfer)
            if expected is not None:
                expected.link = link

    def write(self, transfer: Attempt, offset: int, num_pages: int, staging: Tensor) -> bool:
        """Writes one frame; False if nobody expects it (any more), or not these pages."""
        callback: Callable[[str], None] | None = None
        with self._lock:
            expected = self._expected.get(transfer)
            if expected is None or not 0 <= offset <= len(expected.pages) - num_pages:
                return False
            scatter(self._pool, expected.pages[offset : offset + num_pages], staging)
            expected.missing.difference_update(range(offset, offset + num_pages))
            if not expected.missing:
                del self._expected[transfer]
                callback = expected.on_done
        if callback is not None:
            callback("")
        return True

    def fail(self, transfer: Attempt, reason: str) -> None:
        with self._lock:
            expected = self._expected.pop(transfer, None)
        if expected is not None:
            expected.on_done(reason)

    def link_lost(self, link: object, reason: str) -> None:
        """Fails every transfer whose newest frame this link brought or was about to bring."""
        with self._lock:
            lost = [t for t, expected in self._expected.items() if expected.link is link]
        for transfer in lost:
            self.fail(transfer, reason)
