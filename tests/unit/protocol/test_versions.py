"""Processes of different versions: what they read of each other, and whom they refuse."""

from __future__ import annotations

import logging
import typing
from typing import Any

import msgspec
import pytest

from kvtransfer.links import handshake
from kvtransfer.links.handshake import Hello, Place
from kvtransfer.pages.layout import WHOLE
from protocol import messages
from protocol.ids import Node
from protocol.messages import AnyMessage, Heartbeat, Load, NodeInfo, decode, encode
from protocol.redis.coordinators import SpokenWith
from protocol.trust.checks import read_message
from protocol.trust.versions import OURS, Versions, refusal
from tests.support.coordinator.nodes import LAYOUT, info_of
from tests.support.node.honest_messages import GOOD, NOW_NS

NEXT = Versions(OURS.newest + 1, OURS.newest, "9.0.0")
"""What the next version may speak: its own protocol, and ours."""
AFTER = Versions(OURS.newest + 2, OURS.newest + 1, "9.1.0")
"""What the version after it may speak, which has forgotten ours."""
UNTOLD = Versions()
INFO = info_of(Node("d0", NOW_NS))


def newer(kind: type[msgspec.Struct]) -> type[Any]:
    """The same struct as a later version has it: with one more field at its end."""
    return msgspec.defstruct(
        kind.__name__,
        [("one_more", dict[str, int], msgspec.field(default_factory=lambda: {"new": 1}))],
        bases=(kind,),
        frozen=True,
    )


@pytest.mark.parametrize("message", GOOD, ids=lambda message: type(message).__name__)
def test_a_field_that_a_later_version_adds_is_left_unread(message: AnyMessage) -> None:
    kind = newer(type(message))
    sent = kind(**{name: getattr(message, name) for name in message.__struct_fields__})
    raw = msgspec.msgpack.encode(sent)
    assert len(raw) > len(encode(message)), "the field is on the wire"
    assert read_message(raw, NOW_NS) == message
    assert msgspec.msgpack.decode(encode(message), type=kind) == sent, "and is not missed"


def test_every_message_leaves_unread_what_it_does_not_know() -> None:
    for kind in typing.get_args(AnyMessage):
        assert issubclass(kind, messages.Message) and kind.__struct_config__.array_like
        assert not kind.__struct_config__.forbid_unknown_fields


def test_an_unknown_message_is_refused_and_no_more() -> None:
    with pytest.raises(ValueError, match="Telepathy"):
        read_message(msgspec.msgpack.encode(["Telepathy", 1]), NOW_NS)


@pytest.mark.parametrize("theirs", [OURS, NEXT, UNTOLD])
def test_versions_with_a_common_protocol_speak(theirs: Versions) -> None:
    assert refusal("node p0", theirs) == refusal("node p0", OURS, theirs) == ""


def test_who_is_to_be_upgraded_is_said_on_both_sides() -> None:
    here = refusal("node p7", AFTER)
    assert here.startswith("node p7 speaks protocol") and "kvrelay 9.1.0" in here
    assert here.endswith("upgrade this process")
    assert refusal("coordinator c:1", OURS, AFTER).endswith("upgrade coordinator c:1")


def test_a_heartbeat_that_cannot_be_read_says_whose_it_is() -> None:
    info = msgspec.to_builtins(msgspec.structs.replace(INFO, versions=AFTER))
    info["layout"] = "another shape"
    raw = msgspec.msgpack.encode(["Heartbeat", info, {"role": "dreamer"}, 3.0, "more"])
    with pytest.raises(ValueError, match=r"node d0 speaks protocol .* upgrade this process"):
        read_message(raw, NOW_NS)
    info["versions"] = msgspec.to_builtins(NEXT)
    with pytest.raises(ValueError, match="layout"):
        read_message(msgspec.msgpack.encode(["Heartbeat", info, {}, 3.0]), NOW_NS)


def test_a_process_that_does_not_tell_is_of_the_first_version() -> None:
    info = msgspec.to_builtins(INFO)
    del info["versions"]
    raw = msgspec.msgpack.encode(["Heartbeat", info, msgspec.to_builtins(Load(role="decode")), 3.0])
    heartbeat = decode(raw)
    assert isinstance(heartbeat, Heartbeat) and heartbeat.info.versions == UNTOLD
    assert msgspec.json.decode(msgspec.json.encode(info), type=NodeInfo) == INFO


def test_links_need_a_common_protocol() -> None:
    mine = hello(OURS)
    assert handshake.refusal(mine, hello(NEXT)) == ""
    assert "upgrade this process" in handshake.refusal(mine, hello(AFTER))
    old = msgspec.to_builtins(mine)
    old |= {"version": UNTOLD.newest}
    del old["oldest_version"], old["release"]
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Hello)
    assert read.versions == UNTOLD and handshake.refusal(mine, read) == ""


def test_a_coordinator_that_cannot_be_spoken_with_is_left_out_and_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listed = [b"a:1", b"", b"b:1", msgspec.json.encode(NEXT), b"c:1", msgspec.json.encode(AFTER)]
    spoken_with = SpokenWith()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert spoken_with.among([*listed, b"d:1", b"{"]) == ["a:1", "b:1"]
    assert len(caplog.messages) == 2
    assert "coordinator c:1 speaks protocol" in caplog.messages[0]
    assert "d:1 makes no sense" in caplog.messages[1]


def hello(versions: Versions) -> Hello:
    return Hello(
        versions.newest,
        Node("n", 1),
        LAYOUT,
        "m",
        WHOLE,
        WHOLE,
        Place("h"),
        ["tcp"],
        oldest_version=versions.oldest,
        release=versions.release,
    )
