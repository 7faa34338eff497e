"""Ways to knock at a control port, from the outside and from the inside."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from protocol.channel import Channel
from protocol.messages import Message, encode
from protocol.trust.curve import connect_with
from protocol.trust.keys import ClusterKeys
from protocol.trust.secrets import ClusterSecrets

HOST = "127.0.0.1"
WRONG_SECRET = "what the attacker has made up"
DEADLINE_S = 20.0
SAY_MS = 1_000
"""How long a message may wait for somebody to go to."""
LISTENED_TO_S = 2.0
"""Who has not been hung up on by then is listened to."""
Say = Callable[[str, list[Message]], None]
"""Says messages to a control address."""


def without_a_secret(address: str, messages: list[Message]) -> None:
    _say(address, messages, None)


def with_a_wrong_secret(address: str, messages: list[Message]) -> None:
    _say(address, messages, ClusterKeys.of(WRONG_SECRET))


def in_the_oldest_protocol(address: str, messages: list[Message]) -> None:
    """ZMTP 1.0, which knows no security."""
    host, _, port = address.partition("#")[0].rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE_S) as connection:
        said = b"\x01\x00"
        for raw in map(encode, messages):
            # A frame of up to 254 bytes has a short length, a longer one 0xff and eight bytes.
            size = len(raw) + 1
            head = bytes([size]) if size < 255 else b"\xff" + size.to_bytes(8, "big")
            said += head + b"\x00" + raw
        try:
            connection.sendall(said)
            connection.settimeout(LISTENED_TO_S)
            while connection.recv(4096):
                pass  # until it is hung up on
        except (ConnectionError, TimeoutError):
            pass  # a cluster without a secret goes on listening


OUTSIDERS: tuple[Say, ...] = (without_a_secret, with_a_wrong_secret, in_the_oldest_protocol)


@contextmanager
def member(secret_file: str) -> Iterator[Channel]:
    """One who has the secret, and lies."""
    channel = Channel(HOST, secrets=ClusterSecrets.of((), secret_file))
    try:
        yield channel
    finally:
        channel.close()


def say_raw(channel: Channel, secret_file: str, address: str, raw: bytes) -> None:
    """Says something as a member that no honest member could even encode."""
    (keys,) = ClusterSecrets((), secret_file).keys
    peer = channel._context.socket(zmq.PUSH)
    connect_with(peer, keys)
    peer.setsockopt(zmq.LINGER, 5_000)
    peer.connect(f"tcp://{address.partition('#')[0]}")
    peer.send(raw)
    peer.close()


def _say(address: str, messages: list[Message], keys: ClusterKeys | None) -> None:
    """Says messages over ZMQ, until the other end has hung up or taken them."""
    context = zmq.Context()
    peer = context.socket(zmq.PUSH)
    if keys is not None:
        connect_with(peer, keys)
        # Say that it has even found out whom it talks to.
        peer.curve_serverkey = zmq.curve_public(z85.encode(keys.listening))
    events = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    peer.connect(f"tcp://{address.partition('#')[0]}")
    peer.setsockopt(zmq.SNDTIMEO, SAY_MS)
    with suppress(zmq.Again):  # who was refused by now has nobody to send to
        for message in messages:
            peer.send(encode(message))
    assert events.poll(DEADLINE_S * 1e3), "neither refused nor let in"
    is_let_in = recv_monitor_message(events)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
    peer.setsockopt(zmq.LINGER, int(DEADLINE_S * 1e3) if is_let_in else 0)
    peer.disable_monitor()
    events.close()
    peer.close()
    context.term()
