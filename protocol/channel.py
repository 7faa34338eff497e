"""The one ZMQ channel: a bound inbox, and one outgoing socket per peer address.

PUSH to PULL: messages of one sender to one receiver arrive in order, each at most once. A peer
that is not there (yet) costs nothing but a bounded queue. Not thread-safe, but for `wake`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable

import zmq

from protocol.errors import UserError
from protocol.messages import AnyMessage, Message, decode, encode

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 << 20
MAX_QUEUED_MESSAGES = 100_000
MAX_DRAINED_MESSAGES = 1_000
LINGER_MS = 1_000
MAX_PEERS = 256
"""Sockets kept open; beyond that the one unused for longest is closed."""
HEARTBEAT_MS = 5_000
"""A connection that a network has forgotten is made anew after three of these."""


class AddressInUse(UserError):
    """The control port is taken."""


class PeerUnreachable(Exception):
    """Its queue is full: it has not read for a long time. Or its address is none."""


class Outgoing:
    """Bounded queues to any number of peers, by address. Not thread-safe: one per thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._peers: dict[str, zmq.Socket[bytes]] = {}

    def send(self, address: str, message: Message) -> None:
        """Queues `message` for the peer; raises PeerUnreachable."""
        peer = self._peers.pop(address, None) or self._connect(address)
        self._peers[address] = peer  # the last one is the one used last
        try:
            peer.send(encode(message), zmq.NOBLOCK)
        except zmq.Again as error:
            raise PeerUnreachable(f"{address} has not read its messages") from error

    def _connect(self, address: str) -> zmq.Socket[bytes]:
        if len(self._peers) >= MAX_PEERS:
            self._peers.pop(next(iter(self._peers))).close(linger=LINGER_MS)
        peer = self._context.socket(zmq.PUSH)
        peer.setsockopt(zmq.LINGER, LINGER_MS)
        peer.setsockopt(zmq.SNDHWM, MAX_QUEUED_MESSAGES)
        peer.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
        peer.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        peer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 2 * HEARTBEAT_MS)
        try:
            peer.connect(f"tcp://{address}")
        except zmq.ZMQError as error:
            peer.close(linger=0)
            raise PeerUnreachable(f"{address} is no address ({error})") from error
        return peer

    def forget(self, address: str) -> None:
        """Closes the socket to a peer that is gone, and drops what was queued for it."""
        peer = self._peers.pop(address, None)
        if peer is not None:
            peer.close(linger=0)

    def keep_only(self, addresses: Iterable[str]) -> None:
        """Forgets every peer that is not named."""
        for address in set(self._peers).difference(addresses):
            self.forget(address)

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close(linger=LINGER_MS)
        self._peers.clear()


class Channel:
    """`host` is where this process listens and what peers are told, unless `advertise_host`."""

    def __init__(self, host: str, port: int = 0, advertise_host: str = "") -> None:
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.setsockopt(zmq.LINGER, 0)
        self._inbox.setsockopt(zmq.RCVHWM, MAX_QUEUED_MESSAGES)
        self._inbox.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        try:
            if port:
                self._inbox.bind(f"tcp://{host}:{port}")
            else:
                port = self._inbox.bind_to_random_port(f"tcp://{host}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise AddressInUse(
                f"cannot listen for control messages on {host}:{port} ({error}); "
                "choose another address with --host or --control-port"
            ) from error
        self.address = f"{advertise_host or host}:{port}"
        self._outgoing = Outgoing(self._context)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poller = zmq.Poller()
        self._poller.register(self._inbox, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)

    def outgoing(self) -> Outgoing:
        """A sending half for another thread; close it before this channel."""
        return Outgoing(self._context)

    def send(self, address: str, message: Message) -> None:
        """Queues `message` for the peer; raises PeerUnreachable."""
        self._outgoing.send(address, message)

    def forget(self, address: str) -> None:
        """Drops the socket to a peer that is gone, with what was queued for it."""
        self._outgoing.forget(address)

    def drain(self, timeout_s: float = 0.0) -> list[AnyMessage]:
        """Waits up to `timeout_s` for a message or a `wake`, then takes what is there.

        At most MAX_DRAINED_MESSAGES at once, so that a flood cannot keep a node from its work.
        """
        if timeout_s > 0:
            self._poller.poll(math.ceil(timeout_s * 1_000))
            self._forget_wakes()
        messages: list[AnyMessage] = []
        while len(messages) < MAX_DRAINED_MESSAGES:
            # Asked first: an exception for "nothing there" costs more than a message.
            if not int(self._inbox.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                break
            raw = self._inbox.recv(zmq.NOBLOCK)
            try:
                messages.append(decode(raw))
            except ValueError as error:
                log.warning("dropped %d bytes that are no kvrelay message: %s", len(raw), error)
        return messages

    def wake(self) -> None:
        """Ends a waiting `drain` of the owner's thread; may be called from any thread."""
        try:
            os.write(self._wake_write, b"w")
        except (BlockingIOError, OSError):
            pass  # already awake, or closed

    def _forget_wakes(self) -> None:
        try:
            os.read(self._wake_read, 65_536)
        except BlockingIOError:
            pass

    def fileno(self) -> int:
        """For an event loop. Edge-triggered: after an event, drain until nothing is left."""
        return int(self._inbox.getsockopt(zmq.FD))

    def close(self) -> None:
        self._inbox.close(linger=0)
        self._outgoing.close()
        self._context.term()
        os.close(self._wake_read)
        os.close(self._wake_write)
