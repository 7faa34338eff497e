"""Whatever bytes come over a link, they are a message or the loss of the peer, and nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.links import peer_health
from kvtransfer.links.challenge import (
    MAGIC,
    NotAdmitted,
    prove_as_accepting,
    prove_as_connecting,
)
from kvtransfer.links.handshake import (
    Bye,
    FrameHeader,
    Hello,
    Ping,
    Place,
    Pong,
    Refused,
    Welcome,
    receive_message,
    refusal,
)
from kvtransfer.links.peer_health import PeerHealth
from kvtransfer.links.socket_store import Paired, StoreEntry
from kvtransfer.links.streams import StreamOf
from kvtransfer.pages.layout import FrameShape, Shard
from kvtransfer.transport import PeerLost
from protocol.ids import Attempt, Node
from protocol.messages import Health
from protocol.trust.secrets import ClusterSecrets
from tests.support.coordinator.nodes import LAYOUT
from tests.support.transfer.garbled import hearing, spliced, with_length

NODE = Node("p0", 7)
HELLO = Hello(4, NODE, LAYOUT, "model", Shard(), Shard(), Place("host"), ["tcp"])
MESSAGES = [
    (Hello | StreamOf, HELLO),
    (Hello | StreamOf, StreamOf(b"stream")),
    (Welcome | Refused, Welcome(NODE, "tcp", 1 << 20, 4)),
    (Welcome | Refused, Refused("the nodes serve different weights")),
    (FrameHeader | Ping | Bye, FrameHeader(Attempt("a", 1), FrameShape(0, 1, 0, 2), True)),
    (FrameHeader | Ping | Bye, Ping()),
    (Pong, Pong()),
    (StoreEntry | Paired, StoreEntry("key", b"value")),
]
SECRETS = ClusterSecrets.of(["0123456789abcdef"], "")
PLACES = st.integers(0, 400)
SOME_BYTES = st.binary(max_size=12) | st.sampled_from([b"\x91" * 2000, b"\xa1\xff", b"\xcb" * 9])


@st.composite
def garbled(draw: st.DrawFn, raw: bytes) -> bytes:
    return spliced(raw, draw(PLACES), draw(PLACES), draw(SOME_BYTES))


@given(st.sampled_from(MESSAGES), st.data())
def test_any_message_of_a_link_is_read_or_its_sender_is_lost(
    expected: tuple[Any, msgspec.Struct], data: st.DataObject
) -> None:
    kinds, message = expected
    whole = msgspec.msgpack.encode(message)
    inner = data.draw(st.just(whole) | garbled(whole) | st.binary(max_size=99))
    raw = with_length(inner)
    raw = data.draw(st.just(raw) | garbled(raw))
    with hearing(raw) as connection:
        try:
            read = receive_message(connection, kinds)
        except PeerLost:
            assert raw != with_length(whole), "what is right is understood"
            return
    if isinstance(read, Hello):
        refusal(HELLO, read)
        read.shard.heads_for(HELLO.shard, LAYOUT.num_kv_heads)
    if isinstance(read, FrameHeader) and read.shape.is_within(LAYOUT, max_pages=9):
        assert read.shape.num_rows <= 9 * LAYOUT.num_layers


@pytest.mark.parametrize("secrets", [None, SECRETS])
@given(raw=st.binary(max_size=200) | st.binary(max_size=200).map(MAGIC.__add__))
def test_nobody_is_admitted_by_chance(secrets: ClusterSecrets | None, raw: bytes) -> None:
    for prove in (prove_as_accepting, prove_as_connecting):
        with hearing(raw) as connection:
            try:
                prove(connection, secrets)
            except (NotAdmitted, PeerLost):
                continue
            assert secrets is None, "a secret is known by who proves it alone"


ALIVE = msgspec.json.encode(Health(NODE.name, NODE.incarnation, "alive", 0.0))


@given(data=st.data())
def test_any_answer_of_a_health_port_is_believed_or_not(data: st.DataObject) -> None:
    whole = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + ALIVE
    answer = data.draw(st.just(whole) | garbled(whole) | st.binary(max_size=99))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer_health, "_get", lambda address, path: answer)
        is_alive = PeerHealth(NODE, "127.0.0.1:1").is_alive()
        assert is_alive or answer != whole
        assert not PeerHealth(NODE, "127.0.0.1:1", SECRETS).is_alive(), "it has no proof"


@given(st.text(max_size=9) | st.sampled_from(["h:99999", "h:-1", "h\0:1", ":", "h:", "[::1:1"]))
def test_any_address_of_a_health_port_is_one_of_nobody(address: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer_health, "ASK_TIMEOUT_S", 0.05)
        assert not PeerHealth(NODE, address).is_alive()
