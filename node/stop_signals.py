"""What SIGTERM and SIGINT do to a node, while it starts and once it serves.

As the first process of a container a node would not end of a signal that it does not handle, and
Python runs handlers in its main thread alone, which may be held in a library for a minute while the
ranks of a node meet. So until the node serves, a thread of its own waits for signals.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Obeys the signals that stop this process. Its methods are for the main thread."""

    def __init__(self, end: Callable[[int], None] = os._exit) -> None:
        """Ends the process with status 0 at the first signal, as there is nothing to finish, until
        `obey` says otherwise."""
        self._end = end
        told, self._teller = os.pipe()
        os.set_blocking(self._teller, False)
        signal.set_wakeup_fd(self._teller, warn_on_full_buffer=False)
        for number in NUMBERS:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._await, args=(told,), name="signals", daemon=True).start()

    def obey(self, leave: Callable[[], None], stop: Callable[[], None]) -> None:
        """Calls `leave` at each SIGTERM and `stop` at each SIGINT from now on, in the main
        thread."""
        signal.signal(signal.SIGTERM, lambda *_: leave())
        signal.signal(signal.SIGINT, lambda *_: stop())
        signal.set_wakeup_fd(-1)
        os.close(self._teller)

    def _await(self, told: int) -> None:
        with os.fdopen(told, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] in NUMBERS:
                    log.info("told to stop before this node served: it ends at once")
                    self._end(0)
