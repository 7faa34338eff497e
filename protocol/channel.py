"""`Channel`: sends and receives control messages over ZMQ.

A process has one inbox (a bound PULL socket) and one PUSH socket per peer address. The messages of
one sender to one receiver arrive in order, each at most once: after a broken connection some may be
missing. A peer that is not there (yet) costs nothing but a bounded queue.

With a cluster secret the address of an inbox ends with `#` and the id of the secret that it listens
with, so that peers know which one to prove while two are valid.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable

import zmq

from protocol.errors import UserError
from protocol.messages import AnyMessage, Message, encode
from protocol.trust.checks import read_message
from protocol.trust.curve import Gate, connect_with
from protocol.trust.keys import ClusterKeys
from protocol.trust.refusals import Refusals
from protocol.trust.secrets import ClusterSecrets

MAX_MESSAGE_BYTES = 64 << 20
"""A peer that sends a longer message is disconnected."""
MAX_QUEUED_MESSAGES = 100_000
"""The length of each queue: of messages that came, and of those to one peer."""
MAX_DRAINED_MESSAGES = 1_000
LINGER_MS = 1_000
"""How long messages that are queued at the end may still take to leave."""
MAX_PEERS = 256
"""Sockets that are kept open. Beyond that, the one that was unused for longest is closed."""
HEARTBEAT_MS = 5_000
"""Milliseconds between ZMQ's own pings. A connection that the network has forgotten without a sign
is noticed by them and made anew, after three of these."""


class AddressInUse(UserError):
    """The control port cannot be listened on; the message names the flags to change."""


class PeerUnreachable(Exception):
    """A message cannot be sent: the queue to the peer is full, as it has not read for a long time,
    its address is malformed, or it listens with no cluster secret that is known here."""


class Outgoing:
    """Bounded queues of messages to any number of peers, by address. Not thread-safe: every thread
    that sends needs its own."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], secrets: ClusterSecrets | None = None
    ) -> None:
        """With `secrets` nothing is ever sent to a peer that does not know one of them."""
        self._context = context
        self._secrets = secrets
        self._peers: dict[str, zmq.Socket[bytes]] = {}

    def send(self, address: str, message: Message) -> None:
        """Queues `message` for the peer. Does not wait. Raises PeerUnreachable."""
        peer = self._peers.pop(address, None) or self._connect(address)
        self._peers[address] = peer  # put last: the dictionary is in the order of last use
        try:
            peer.send(encode(message), zmq.NOBLOCK)
        except zmq.Again as error:
            raise PeerUnreachable(f"{address} has not read its messages") from error

    def _connect(self, address: str) -> zmq.Socket[bytes]:
        """Returns a new socket to `address`; connecting goes on behind it, over and over. Closes
        the socket that was unused for longest if there are too many."""
        if len(self._peers) >= MAX_PEERS:
            self._peers.pop(next(iter(self._peers))).close(linger=LINGER_MS)
        host_and_port, _, key_id = address.partition("#")
        keys = self._keys_for(address, key_id)
        peer = self._context.socket(zmq.PUSH)
        if keys is not None:
            connect_with(peer, keys)
        peer.setsockopt(zmq.LINGER, LINGER_MS)
        peer.setsockopt(zmq.SNDHWM, MAX_QUEUED_MESSAGES)
        peer.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
        peer.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        peer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 2 * HEARTBEAT_MS)
        try:
            peer.connect(f"tcp://{host_and_port}")
        except zmq.ZMQError as error:
            peer.close(linger=0)
            raise PeerUnreachable(f"{address} is no address ({error})") from error
        return peer

    def _keys_for(self, address: str, key_id: str) -> ClusterKeys | None:
        """Returns the keys with which the owner of `address` listens; None if neither of us has a
        secret. Raises PeerUnreachable."""
        keys = self._secrets.find(key_id) if self._secrets is not None else None
        if keys is not None or (self._secrets is None and not key_id):
            return keys
        theirs = "another cluster secret than ours" if key_id else "no cluster secret"
        ours = "; we have none" if self._secrets is None else ""
        raise PeerUnreachable(
            f"{address} listens with {theirs}{ours}: all processes of a cluster need the same "
            "--cluster-secret-file"
        )

    def forget(self, address: str) -> None:
        """Closes the socket to a peer and drops what is queued for it. Does nothing for others."""
        peer = self._peers.pop(address, None)
        if peer is not None:
            peer.close(linger=0)

    def keep_only(self, addresses: Iterable[str]) -> None:
        """Forgets every peer that is not named."""
        for address in set(self._peers).difference(addresses):
            self.forget(address)

    def close(self) -> None:
        """Closes every socket; what is queued has LINGER_MS to leave."""
        for peer in self._peers.values():
            peer.close(linger=LINGER_MS)
        self._peers.clear()


class Channel:
    """The inbox of a process and its queues to peers. Not thread-safe, but for `wake`."""

    def __init__(
        self,
        host: str,
        port: int = 0,
        advertise_host: str = "",
        secrets: ClusterSecrets | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        """Listens on `host` and `port` (0: any free one). Raises AddressInUse. With `secrets` only
        peers that know one of them are let in.

        `address` is what peers are told: `advertise_host`, or `host` if that is "", and the port.
        """
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.setsockopt(zmq.LINGER, 0)
        self._inbox.setsockopt(zmq.RCVHWM, MAX_QUEUED_MESSAGES)
        self._inbox.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self.refusals = refusals or Refusals()
        self._gate = None
        if secrets is not None:
            self._gate = Gate(self._context, self._inbox, secrets, self.refusals)
        try:
            if port:
                self._inbox.bind(f"tcp://{host}:{port}")
            else:
                port = self._inbox.bind_to_random_port(f"tcp://{host}")
        except zmq.ZMQError as error:
            if self._gate is not None:
                self._gate.close()
            self._context.destroy(linger=0)
            raise AddressInUse(
                f"cannot listen for control messages on {host}:{port} ({error}); "
                "choose another address with --host or --control-port"
            ) from error
        key_id = f"#{self._gate.key_id}" if self._gate is not None else ""
        self.address = f"{advertise_host or host}:{port}{key_id}"
        self._outgoing = Outgoing(self._context, secrets)
        # ZMQ sockets belong to one thread. A pipe beside them lets any other thread wake it.
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poller = zmq.Poller()
        self._poller.register(self._inbox, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)

    def send(self, address: str, message: Message) -> None:
        """Queues `message` for the peer. Does not wait. Raises PeerUnreachable."""
        self._outgoing.send(address, message)

    def forget(self, address: str) -> None:
        """Closes the socket to a peer and drops what is queued for it. Does nothing for others."""
        self._outgoing.forget(address)

    def drain(self, timeout_s: float = 0.0) -> list[AnyMessage]:
        """Waits up to `timeout_s` for a message or a `wake`, then returns the messages that came.

        It returns at most MAX_DRAINED_MESSAGES, so that a flood cannot keep a node from its work.
        What is no message, or cannot be believed, is dropped and counted.
        """
        if timeout_s > 0:
            self._poller.poll(math.ceil(timeout_s * 1_000))
            self._forget_wakes()
        messages: list[AnyMessage] = []
        while len(messages) < MAX_DRAINED_MESSAGES:
            # Asking first is cheaper: the exception for "nothing there" costs more than a message.
            if not int(self._inbox.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                break
            frame = self._inbox.recv(zmq.NOBLOCK, copy=False)  # it knows whom it came from
            try:
                messages.append(read_message(frame.bytes, time.time_ns()))
            except ValueError as error:
                self.refusals.refuse("message", str(frame.get("Peer-Address")), str(error))
        return messages

    def wake(self) -> None:
        """Ends the wait of a `drain`, the current one or the next. May be called by any thread."""
        try:
            os.write(self._wake_write, b"w")
        except (BlockingIOError, OSError):
            pass  # already awake, or closed

    def _forget_wakes(self) -> None:
        """Empties the pipe, so that the wakes so far do not end the next wait."""
        try:
            os.read(self._wake_read, 65_536)
        except BlockingIOError:
            pass

    def fileno(self) -> int:
        """Returns a file descriptor for an event loop, readable when messages may have come.

        It is edge-triggered: after it became readable, `drain` must be called until it is empty,
        or the messages that are left will cause no further event.
        """
        return int(self._inbox.getsockopt(zmq.FD))

    def close(self) -> None:
        """Closes all sockets; waits until what is queued has left, at most LINGER_MS."""
        if self._gate is not None:
            self._gate.close()
        self._inbox.close(linger=0)
        self._outgoing.close()
        self._context.term()
        os.close(self._wake_read)
        os.close(self._wake_write)
