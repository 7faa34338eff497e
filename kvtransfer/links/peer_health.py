"""`PeerHealth`: asks a peer's health port whether a peer that is silent on its link still lives.

A link has a thread at each end, which Python's lock may hold up for seconds; the health port is
answered by another process (docs/decisions/0036).
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

import msgspec

from protocol.ids import Node
from protocol.messages import Health

ASK_TIMEOUT_S = 1.0
MAX_ANSWER_BYTES = 4096


@dataclass(frozen=True)
class PeerHealth:
    """Where one incarnation of a peer tells how it does."""

    node: Node
    address: str
    """Its health port; "" if it has none."""

    def is_alive(self) -> bool:
        """Asks, and waits up to ASK_TIMEOUT_S for the answer. Returns False if there is none, or if
        another incarnation answers."""
        if not self.address:
            return False
        try:
            health = msgspec.json.decode(_get(self.address), type=Health)
        except (OSError, ValueError):
            return False
        return health.is_live and Node(health.node, health.incarnation) == self.node


def _get(address: str) -> bytes:
    """Returns the body of GET /live. Raises OSError."""
    deadline = time.monotonic() + ASK_TIMEOUT_S
    host, _, port = address.rpartition(":")
    answer = b""
    with socket.create_connection((host, int(port)), ASK_TIMEOUT_S) as connection:
        connection.sendall(b"GET /live HTTP/1.0\r\n\r\n")
        while len(answer) < MAX_ANSWER_BYTES:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            part = connection.recv(MAX_ANSWER_BYTES)
            if not part:
                break
            answer += part
    return answer.partition(b"\r\n\r\n")[2]
