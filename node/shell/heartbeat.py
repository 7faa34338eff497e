"""Heartbeats to every coordinator, from a thread of their own: a long step delays none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from protocol.channel import Outgoing, PeerUnreachable
from protocol.messages import Goodbye, Heartbeat, Load, NodeInfo

HEARTBEATS_PER_LEASE = 12
NEWS_INTERVAL_S = 0.05
"""Work that comes or goes is told at once, but no more often than this: several coordinators know
of each other's requests by heartbeats only."""


class Heartbeats:
    """Sends the newest load several times per lease, and soon after work came or went.

    If the main loop has not called `update` for `stall_s`, it is taken for hung, and the heartbeats
    stop, so that the cluster routes around this node.
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
        self._load: Load | None = None
        self._updated = time.monotonic()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Starts the thread that sends heartbeats."""
        self._thread.start()

    def update(self, load: Load) -> None:
        """Takes the load after a turn of the main loop. Before the first call there is no
        heartbeat."""
        if self._load is None or work_changed(self._load, load):
            self._wake.set()
        self._load = load
        self._updated = time.monotonic()

    def close(self) -> None:
        """Stops the heartbeats and says goodbye to every coordinator."""
        self._stop.set()
        self._wake.set()
        self._thread.join()
        for address in self._coordinators():
            self._send(address, Goodbye(self._info.node))
        self._outgoing.close()

    def _run(self) -> None:
        interval_s = self._lease_s / HEARTBEATS_PER_LEASE
        while not self._stop.wait(min(NEWS_INTERVAL_S, interval_s)):
            self._wake.wait(max(0.0, interval_s - NEWS_INTERVAL_S))
            self._wake.clear()
            load = self._load
            if load is None or time.monotonic() - self._updated > self._stall_s:
                continue
            addresses = self._coordinators()
            self._outgoing.keep_only(addresses)
            for address in addresses:
                self._send(address, Heartbeat(self._info, load, self._lease_s))

    def _send(self, address: str, message: Heartbeat | Goodbye) -> None:
        try:
            self._outgoing.send(address, message)
        except PeerUnreachable:
            self._outgoing.forget(address)


def work_changed(before: Load, after: Load) -> bool:
    """Returns whether requests came or went. Progress within a request does not count, as everybody
    expects it."""
    return (
        before.num_running != after.num_running
        or before.num_waiting != after.num_waiting
        or before.queued_tokens < after.queued_tokens
        or before.counters.requests != after.counters.requests
    )
