"""`Inbox`: the transfers that a rank expects, found by their name when a frame arrives."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from kvtransfer.pages.arrivals import Arrivals
from kvtransfer.transport import OnDone, OnProgress
from protocol.ids import Attempt


class Inbox:
    """The `Arrivals` of all expected transfers that have not ended. Thread-safe."""

    def __init__(self, num_layers: int, num_heads: int) -> None:
        """`num_layers` and `num_heads` (KV heads) are those of this rank's pool."""
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
        """Expects a transfer into `pages` of the pool, as `Transport.expect` describes.

        The pages may be written into when the event `free` has happened; None: at once.
        """
        assert pages, "a transfer has at least one page"

        def ended(error: str) -> None:
            self._forget(transfer, arrivals)
            on_done(error)

        arrivals = Arrivals(pages, self._num_layers, self._num_heads, free, on_progress, ended)
        with self._lock:
            self._expected[transfer] = arrivals

    def abort(self, transfer: Attempt) -> None:
        """Forgets the transfer; no page of it is written and no callback called from now on."""
        with self._lock:
            arrivals = self._expected.pop(transfer, None)
        # Outside of the lock: a callback of `arrivals` takes it while it holds its own.
        if arrivals is not None:
            arrivals.abort()

    def find(self, transfer: Attempt) -> Arrivals | None:
        """Returns the transfer; None if it is not expected, or not any more."""
        with self._lock:
            return self._expected.get(transfer)

    def link_lost(self, link: object, reason: str) -> None:
        """Ends, with `reason`, every transfer of which this link announced a part."""
        with self._lock:
            expected = list(self._expected.values())
        for arrivals in expected:
            arrivals.link_lost(link, reason)

    def _forget(self, transfer: Attempt, arrivals: Arrivals) -> None:
        """Removes `arrivals`, unless the transfer has been expected anew since then."""
        with self._lock:
            if self._expected.get(transfer) is arrivals:
                del self._expected[transfer]
