"""The channel between processes, over real sockets of this host."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import zmq

from protocol import channel as channel_module
from protocol.channel import AddressInUse, Channel, PeerUnreachable
from protocol.hosts import advertised_host
from protocol.ids import Attempt
from protocol.messages import AnyMessage, Cancel

HOST = "127.0.0.1"


@pytest.fixture
def channel() -> Iterator[Channel]:
    channel = Channel(HOST)
    yield channel
    channel.close()


@pytest.fixture
def other() -> Iterator[Channel]:
    other = Channel(HOST)
    yield other
    other.close()


def address_of_nobody() -> tuple[str, int]:
    """A control address that was somebody's a moment ago, and its port."""
    gone = Channel(HOST)
    gone.close()
    return gone.address, int(gone.address.rpartition(":")[2])


def numbered(number: int) -> Cancel:
    return Cancel(Attempt("r", number))


def receive(channel: Channel, count: int) -> list[AnyMessage]:
    messages: list[AnyMessage] = []
    while len(messages) < count:
        arrived = channel.drain(timeout_s=20.0)
        assert arrived, "nothing arrived"
        messages += arrived
    return messages


def test_messages_arrive_in_order_also_those_sent_before_the_peer_is_there(
    channel: Channel,
) -> None:
    address, port = address_of_nobody()
    sent = [numbered(i) for i in range(100)]
    for message in sent:
        channel.send(address, message)
    other = Channel(HOST, port)
    assert receive(other, 100) == sent
    other.close()


def test_what_is_no_message_is_dropped(channel: Channel, other: Channel) -> None:
    socket = zmq.Context.instance().socket(zmq.PUSH)
    socket.connect(f"tcp://{channel.address}")
    for raw in (b"", b"\xff" * 10, b"\x93\xa6Cancel"):
        socket.send(raw)
    other.send(channel.address, numbered(1))
    socket.send(b"garbage")
    messages: list[AnyMessage] = []
    while not messages:
        messages = channel.drain(timeout_s=20.0)
    assert messages == [numbered(1)]
    socket.close(linger=0)


def test_wake_ends_a_waiting_drain(channel: Channel) -> None:
    drained: list[list[AnyMessage]] = []
    waiting = threading.Thread(target=lambda: drained.append(channel.drain(timeout_s=60.0)))
    waiting.start()
    channel.wake()
    waiting.join(timeout=20.0)
    assert drained == [[]]


def test_what_was_queued_for_a_peer_that_is_gone_does_not_reach_the_next_one(
    channel: Channel,
) -> None:
    address, port = address_of_nobody()
    channel.send(address, numbered(1))
    channel.forget(address)
    channel.send(address, numbered(2))
    reborn = Channel(HOST, port)
    assert receive(reborn, 1) == [numbered(2)]
    reborn.close()


@pytest.mark.parametrize("address", ["", "no address", "127.0.0.1", "a b:1"])
def test_an_address_that_is_none(channel: Channel, address: str) -> None:
    with pytest.raises(PeerUnreachable, match="no address"):
        channel.send(address, numbered(1))


def test_open_sockets_are_bounded(
    channel: Channel, other: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "MAX_PEERS", 4)
    for number in range(20):
        channel.send(other.address, numbered(number))
        channel.send(f"127.0.0.1:{number + 1}", numbered(number))
    assert len(channel._outgoing._peers) <= 4
    assert receive(other, 20) == [numbered(i) for i in range(20)], "the one in use was closed"


def test_a_taken_port_is_told(channel: Channel) -> None:
    port = int(channel.address.rpartition(":")[2])
    with pytest.raises(AddressInUse, match="--control-port"):
        Channel(HOST, port)


def test_what_address_peers_are_told() -> None:
    assert advertised_host("10.0.0.7", "", "redis://r") == "10.0.0.7"
    assert advertised_host("0.0.0.0", "node.example", "redis://r") == "node.example"
    assert advertised_host("0.0.0.0", "", "redis://127.0.0.1:6379") not in ("", "0.0.0.0")
    unresolvable = advertised_host("0.0.0.0", "", "redis://no.such.host.invalid")
    assert unresolvable not in ("", "0.0.0.0")
