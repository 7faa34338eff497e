"""`PeerHealth`: asks a peer's health port whether a peer that is silent on its link still lives.

A link has a thread at each end, which Python's lock may hold up for seconds; the health port is
answered by another process (docs/decisions/0036).
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass

import msgspec

from protocol.ids import Node
from protocol.messages import Health
from protocol.trust.live_proofs import PROOF_HEADER, live_proofs
from protocol.trust.secrets import ClusterSecrets

ASK_TIMEOUT_S = 1.0
MAX_ANSWER_BYTES = 4096


@dataclass(frozen=True)
class PeerHealth:
    """Where one incarnation of a peer tells how it does."""

    node: Node
    address: str
    """Its health port; "" if it has none."""
    secrets: ClusterSecrets | None = None
    """What an answer must prove; None: any is believed."""

    def is_alive(self) -> bool:
        """Asks, and waits up to ASK_TIMEOUT_S for the answer. Returns False if there is none, or if
        another incarnation answers."""
        if not self.address:
            return False
        try:
            health = msgspec.json.decode(self._answer(), type=Health)
        except (OSError, ValueError, OverflowError, RecursionError):
            return False
        return health.is_live and Node(health.node, health.incarnation) == self.node

    def _answer(self) -> bytes:
        """Returns the body of GET /live; b"" if it has no proof that we know. Raises OSError."""
        nonce = os.urandom(16).hex()
        head, _, body = _get(self.address, f"/live?nonce={nonce}").partition(b"\r\n\r\n")
        if self.secrets is None:
            return body
        given = head.partition(f"{PROOF_HEADER}: ".encode())[2].partition(b"\r\n")[0].split(b",")
        known = live_proofs(self.secrets, nonce, body)
        return body if any(proof.encode() in given for proof in known) else b""


def _get(address: str, path: str) -> bytes:
    """Returns head and body of the answer to a GET. Raises OSError."""
    deadline = time.monotonic() + ASK_TIMEOUT_S
    host, _, port = address.rpartition(":")
    answer = b""
    with socket.create_connection((host, int(port)), ASK_TIMEOUT_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        while len(answer) < MAX_ANSWER_BYTES:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            part = connection.recv(MAX_ANSWER_BYTES)
            if not part:
                break
            answer += part
    return answer
