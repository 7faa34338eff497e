"""`Meetings`: makes links to other nodes ahead of need, since making the first one between two GPUs
takes a second that a request would wait for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from kvtransfer.transport import Transport
from node.shell.acquaintances import Acquaintances
from protocol.ids import Attempt
from protocol.messages import NodeInfo
from protocol.redis import ownership
from protocol.redis.client import REDIS_ERRORS, connect

log = logging.getLogger(__name__)

REDIS_TIMEOUT_S = 2.0
LOOK_INTERVAL_S = 1.0
LOOK_NODE_S = 0.05
"""How much longer the interval is for each node that was found: all nodes look, and at each, so
without it what they ask of Redis would grow with the square of their number."""
MEETING_TIMEOUT_S = 5.0
"""How long a node that starts waits for its links: longer than a pair may take."""
POLL_S = 0.01


def look_interval_s(num_nodes: int) -> float:
    """Returns when to look again after a look that has found so many nodes."""
    return max(LOOK_INTERVAL_S, LOOK_NODE_S * num_nodes)


MEETING = Attempt("meeting", 1)
"""Names the transfers without pages by which links are made."""


class Meetings:
    """Looks into Redis who lives, and has the transport make a link to who is new. What fails is
    tried again when a request needs it."""

    def __init__(self, redis_url: str, info: NodeInfo, transport: Transport) -> None:
        self._redis_url = redis_url
        self._redis: Any = None
        self._transport = transport
        self._acquaintances = Acquaintances(info)
        self._num_listed = 0
        """How many nodes the last look has found."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meetings", daemon=True)

    def start(self) -> None:
        """Meets the nodes that are there, and waits for that, at most MEETING_TIMEOUT_S. A thread
        meets those that come later."""
        names = [info.node.name for info in self._meet()]
        if names:
            log.info("making links to %s", ", ".join(names))
            self._await_links(names)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(look_interval_s(self._num_listed)):
            self._meet()

    def _meet(self) -> list[NodeInfo]:
        listed = self._listed()
        self._num_listed = len(listed)
        strangers = self._acquaintances.strangers(listed)
        for info in strangers:
            self._transport.send(info.data_addresses, MEETING, [], 0, lambda _: None)
        return strangers

    def _listed(self) -> list[NodeInfo]:
        """Returns the nodes with a lease; none while Redis cannot be reached, of which others
        tell."""
        try:
            if self._redis is None:
                self._redis = connect(self._redis_url, REDIS_TIMEOUT_S)
            look = self._redis.register_script(ownership.LIST_NODES)
            return _infos(look([ownership.NODES_KEY], [ownership.NODE_PREFIX]))
        except REDIS_ERRORS as error:
            log.debug("nobody can be met: %s", error)
            self._redis = None
            return []

    def _await_links(self, names: Sequence[str]) -> None:
        deadline = time.monotonic() + MEETING_TIMEOUT_S
        while not self._stop.is_set():
            links = [link for link in self._transport.links() if link.direction == "out"]
            missing = set(names) - {link.peer for link in links if link.is_open or link.failures}
            if not missing:
                return
            if time.monotonic() > deadline:
                log.warning("no link to %s so far; the node serves without", ", ".join(missing))
                return
            self._stop.wait(POLL_S)


def _infos(reply: Sequence[Any]) -> list[NodeInfo]:
    """Returns the infos of the nodes with a lease, out of a reply of LIST_NODES. One that is of
    another version of these programs is left out."""
    found = []
    for lease, info in zip(reply[1::4], reply[2::4], strict=True):
        try:
            if lease is not None:
                found.append(msgspec.json.decode(info, type=NodeInfo))
        except (ValueError, RecursionError) as error:
            log.debug("an info of a node makes no sense: %s", error)
    return found
