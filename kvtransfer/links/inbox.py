"""`Inbox`: the transfers that a rank expects."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from kvtransfer.pages.arrivals import Arrivals
from kvtransfer.transport import OnDone, OnProgress
from protocol.ids import Attempt


class Inbox:
    """Thread-safe. Holds what has not ended; see `Arrivals` for what an end means."""

    def __init__(self, num_layers: int, num_heads: int) -> None:
        """Of this rank's pool."""
        self._num_layers, self._num_heads = num_layers, num_heads
        self._expected: dict[Attempt, Arrivals] = {}
        self._lock = threading.Lock()

    def expect(
        self,
        transfer: Attempt,
        pages: Sequence[int],
        free: torch.cuda.Event | None,
        on_progress: OnProgress,
        on_done: OnDone,
    ) -> None:
        assert pages, "a transfer has at least one page"

        def ended(error: str) -> None:
            self._forget(transfer, arrivals)
            on_done(error)

        arrivals = Arrivals(pages, self._num_layers, self._num_heads, free, on_progress, ended)
        with self._lock:
            self._expected[transfer] = arrivals

    def abort(self, transfer: Attempt) -> None:
        with self._lock:
            arrivals = self._expected.pop(transfer, None)
        if arrivals is not None:
            arrivals.abort()

    def find(self, transfer: Attempt) -> Arrivals | None:
        with self._lock:
            return self._expected.get(transfer)

    def link_lost(self, link: object, reason: str) -> None:
        """Fails every transfer of which this link announced a part."""
        with self._lock:
            expected = list(self._expected.values())
        for arrivals in expected:
            arrivals.link_lost(link, reason)

    def _forget(self, transfer: Attempt, arrivals: Arrivals) -> None:
        with self._lock:
            if self._expected.get(transfer) is arrivals:
                del self._expected[transfer]
