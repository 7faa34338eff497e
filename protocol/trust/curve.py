"""CURVE on control sockets: who connects proves the cluster secret, and all messages are encrypted.

ZMQ's CURVE needs a key pair at each end. Both are derived from the secret, so nothing has to be
handed out: who connects knows the public key of who listens, who listens accepts only the public
keys of those who connect, and neither key is ever sent in the clear. `Gate` answers ZMQ's question
whom to accept (ZAP, RFC 27), on a thread, as the process itself may be busy for seconds.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Mapping
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from protocol.trust.keys import ClusterKeys
from protocol.trust.refusals import Refusals
from protocol.trust.secrets import ClusterSecrets

log = logging.getLogger(__name__)

ZAP_ADDRESS = "inproc://zeromq.zap.01"
ZAP_DOMAIN = b"kvrelay"
STOP_ADDRESS = "inproc://gate.stop"
HANDSHAKE_TIMEOUT_MS = 5_000
FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
NO_SECRET = "it has not shown that it knows the cluster secret"


def connect_with(peer: zmq.Socket[bytes], keys: ClusterKeys) -> None:
    """Has a socket that will connect prove this secret, and take nothing else for its peer."""
    secret = z85.encode(keys.connecting)
    peer.curve_secretkey = secret
    peer.curve_publickey = zmq.curve_public(secret)
    peer.curve_serverkey = zmq.curve_public(z85.encode(keys.listening))


class Gate:
    """Guards one listening socket: decides who may connect to it, and counts who may not."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        inbox: zmq.Socket[bytes],
        secrets: ClusterSecrets,
        refusals: Refusals,
    ) -> None:
        """Must be called before `inbox` is bound. It listens with the first of `secrets`, whose
        id is `key_id`, and accepts all of them."""
        keys = secrets.keys[0]
        self.key_id = keys.id
        self._secrets = secrets
        self._refusals = refusals
        inbox.curve_secretkey = z85.encode(keys.listening)
        inbox.curve_server = True
        inbox.zap_domain = ZAP_DOMAIN
        inbox.handshake_ivl = HANDSHAKE_TIMEOUT_MS
        self._questions = context.socket(zmq.REP)
        self._questions.bind(ZAP_ADDRESS)
        self._monitor = inbox.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | FAILED
        )
        self._inbox = inbox
        self._stop = context.socket(zmq.PAIR)
        self._stop.bind(STOP_ADDRESS)
        stopped = context.socket(zmq.PAIR)
        stopped.connect(STOP_ADDRESS)
        self._hosts: dict[int, str] = {}
        """The hosts of connections, by file descriptor."""
        self._has_failed = False
        """The event before said that a handshake failed; the next one says of which connection."""
        self._thread = threading.Thread(
            target=self._run, args=(stopped,), name="control-gate", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Ends the thread. Nobody is let in any more."""
        self._stop.send(b"")
        self._thread.join()
        self._stop.close(linger=0)

    def _run(self, stopped: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        for each in (self._questions, self._monitor, stopped):
            poller.register(each, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if stopped in ready:
                break
            if self._questions in ready:
                self._answer()
            if self._monitor in ready:
                self._note(recv_monitor_message(self._monitor))
        self._inbox.disable_monitor()
        for each in (self._questions, self._monitor, stopped):
            each.close(linger=0)

    def _answer(self) -> None:
        """Answers whether the public key of a peer is one that a secret of the cluster opens."""
        _, request_id, _, _, _, _, *credentials = self._questions.recv_multipart()
        accepted = [
            z85.decode(zmq.curve_public(z85.encode(keys.connecting))) for keys in self._secrets.keys
        ]
        status = [b"200", b"OK"] if credentials and credentials[0] in accepted else [b"400", b"no"]
        self._questions.send_multipart([b"1.0", request_id, *status, b"", b""])

    def _note(self, event: Mapping[str, Any]) -> None:
        """Counts a connection whose handshake failed. ZMQ says so without naming it, and right
        after that says that it was closed, with its descriptor."""
        kind, value = int(event["event"]), int(event["value"])
        if kind == zmq.EVENT_ACCEPTED:
            self._hosts[value] = _host_of(value)
        elif kind == zmq.EVENT_DISCONNECTED:
            host = self._hosts.pop(value, "somebody")
            if self._has_failed:
                self._refusals.refuse("control", host, NO_SECRET)
            self._has_failed = False
        elif kind & FAILED:
            self._has_failed = True


def _host_of(descriptor: int) -> str:
    """Returns the host at the other end of a connection of ZMQ's; "somebody" if it is over
    already."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            return str(connection.getpeername()[0])
    except (OSError, IndexError):
        return "somebody"
