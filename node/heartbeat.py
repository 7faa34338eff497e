"""Heartbeats to every coordinator, from a thread of their own: a long step delays none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from protocol.channel import Outgoing, PeerUnreachable
from protocol.messages import Goodbye, Heartbeat, Load, NodeInfo

HEARTBEATS_PER_LEASE = 12


class Heartbeats:
    """Sends the newest `load` several times per lease.

    `stall_s`: a main loop that has not called `update` for so long is taken for hung, and the
    heartbeats stop, so that the cluster routes around this node.
    """

    def __init__(
        self,
        outgoing: Outgoing,
        info: NodeInfo,
        lease_s: float,
        stall_s: float,
        coordinators: Callable[[], Sequence[str]],
    ) -> None:
        self._outgoing = outgoing
        self._info = info
        self._lease_s = lease_s
        self._stall_s = stall_s
        self._coordinators = coordinators
        self._load = Load()
        self._updated = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def update(self, load: Load) -> None:
        self._load = load
        self._updated = time.monotonic()

    def close(self) -> None:
        """Says goodbye to every coordinator."""
        self._stop.set()
        self._thread.join()
        for address in self._coordinators():
            self._send(address, Goodbye(self._info.node))
        self._outgoing.close()

    def _run(self) -> None:
        while not self._stop.wait(self._lease_s / HEARTBEATS_PER_LEASE):
            if time.monotonic() - self._updated > self._stall_s:
                continue
            addresses = self._coordinators()
            self._outgoing.keep_only(addresses)
            for address in addresses:
                self._send(address, Heartbeat(self._info, self._load, self._lease_s))

    def _send(self, address: str, message: Heartbeat | Goodbye) -> None:
        try:
            self._outgoing.send(address, message)
        except PeerUnreachable:
            self._outgoing.forget(address)
