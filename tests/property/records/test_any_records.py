"""Whatever somebody has written to Redis, a coordinator reads it, or leaves it, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.answers.request import Request
from coordinator.core.errors import RequestRefused
from coordinator.core.pause import Pause
from coordinator.leaving.resume_token import InvalidResumeToken, ResumeToken
from coordinator.ownership.index import PrefixIndex
from coordinator.ownership.mirror import MirrorCall, OwnershipMirror
from coordinator.peers.peers import Peers
from coordinator.sessions.store import SessionStore
from coordinator.sessions.turns import TurnRequest
from node.shell.meetings import _infos
from protocol.ids import Node
from protocol.redis.client import REDIS_ERRORS
from protocol.redis.coordinators import LIST_COORDINATORS, OUR_VERSIONS
from protocol.sampling import Sampling
from tests.support.coordinator.nodes import info_of
from tests.support.transfer.garbled import spliced

NODE = Node("p0", 1)
INFO = msgspec.json.encode(info_of(NODE))
NUM_GARBLED = 20
PAGES = [bytes([number]) * 16 for number in range(4)]
GOOD_ENTRY = {b"n": b"1", b"k": b"change", b"s": b"".join(PAGES), b"r": b""}
BYTES = st.binary(max_size=40) | st.sampled_from([b"\xff\xfe", b"-1", b"9" * 5000])
PLACES = st.integers(0, 999)
INFOS = st.just(INFO) | st.builds(spliced, st.just(INFO), PLACES, PLACES, BYTES)
ENTRIES = st.just(GOOD_ENTRY) | st.dictionaries(st.sampled_from(list(GOOD_ENTRY)), BYTES)
REPLIES: dict[str, st.SearchStrategy[Any]] = {
    "announce": st.just(10**15),
    "write_draining": st.none(),
    "read_draining": st.dictionaries(BYTES, BYTES, max_size=2),
    "list_leases": st.tuples(BYTES, st.none() | BYTES, st.none() | BYTES).map(list),
    "last_change": st.lists(st.tuples(st.just(b"5-1"), ENTRIES), max_size=1),
    "scan_pages": st.tuples(st.sampled_from([b"0", b"7"]), BYTES | st.just(b"".join(PAGES))),
    "read_changes": st.lists(st.tuples(st.just(b"5-2"), ENTRIES), max_size=3),
}
GOOD: dict[str, Any] = {
    "announce": 10**15,
    "write_draining": None,
    "read_draining": {},
    "list_leases": [b"p0", b"1", b"1"],
    "last_change": [(b"5-1", GOOD_ENTRY)],
    "scan_pages": (b"0", b"".join(PAGES)),
    "read_changes": [],
}


def replied(mirror: OwnershipMirror, call: MirrorCall, result: Any, now: float) -> None:
    if call.script == "read_changes":
        result = [(key.encode(), result) for key in call.args[0]]
    mirror.replied(call, result, now)


@given(st.data())
def test_a_mirror_of_nonsense_is_right_again_when_it_is_mended(data: st.DataObject) -> None:
    """Some nonsense may be true, so an audit has to ask for the load of the node again."""
    index = PrefixIndex()
    mirror, now = OwnershipMirror("tcp://me:1", index), 0.0
    for step in range(NUM_GARBLED + 40):
        if step in (NUM_GARBLED, NUM_GARBLED + 20):
            mirror.ask_for_load(NODE)
        call, now = mirror.next_call(now), now + 0.1
        if call is None:
            continue
        is_garbled = step < NUM_GARBLED and data.draw(st.booleans())
        result = data.draw(REPLIES[call.script]) if is_garbled else GOOD[call.script]
        replied(mirror, call, result, now)
    assert set(index.pages(NODE)) == set(PAGES)


@given(st.lists(st.tuples(BYTES, st.none() | st.just(b"1"), INFOS, BYTES), max_size=3))
def test_nodes_meet_those_whose_infos_make_sense(records: list[tuple[Any, ...]]) -> None:
    listed = [part for record in records for part in record]
    good = sum(info == INFO and lease is not None for _, lease, info, _ in records)
    assert len(_infos(listed)) >= good


class Replying:
    """A client of Redis whose scripts all answer the same, but for those that are named."""

    def __init__(self, reply: Any, replies: Mapping[str, Any] | None = None) -> None:
        self._reply = reply
        self._replies = replies or {}

    def register_script(self, script: str) -> Callable[..., Awaitable[Any]]:
        async def run(**given: Any) -> Any:
            return self._replies.get(script, self._reply)

        return run


VERSIONS = BYTES | st.sampled_from([b"", OUR_VERSIONS])


@given(
    BYTES | st.integers(-1, 9),
    BYTES | st.sampled_from([b"", b"abort"]),
    st.lists(st.tuples(BYTES, VERSIONS)),
)
def test_any_record_of_pauses_is_obeyed_or_an_error_of_redis(
    number: Any, mode: bytes, coordinators: list[tuple[bytes, bytes]]
) -> None:
    obeyed: list[Pause] = []
    listed = {LIST_COORDINATORS: [part for each in coordinators for part in each]}
    peers = Peers(Replying([number, mode], listed), "tcp://me:1", Pause, obeyed.append)
    try:
        asyncio.run(peers.look())
    except REDIS_ERRORS:
        assert not obeyed
    else:
        assert len(obeyed) == 1 and obeyed[0].mode in (None, "abort", "retract", "in_place")


TURNS = st.lists(st.tuples(BYTES, BYTES, BYTES | st.none()), max_size=2)


@given(st.none() | st.tuples(BYTES | st.just(b"9"), TURNS))
def test_any_session_is_read_or_refused(reply: Any) -> None:
    store = SessionStore(Replying(reply), ttl_s=60.0)
    try:
        asyncio.run(store.read(TurnRequest("s", rid="r")))
    except RequestRefused as refusal:
        assert str(refusal)


ASKED = Request([1, 2], Sampling(seed=7), 8, rid="r", resume_key="key")
TOKEN = ResumeToken.of(ASKED, "r", "tcp://me:1").text


@given(
    st.text(max_size=80)
    | st.builds(spliced, st.just(TOKEN.encode()), PLACES, PLACES, st.binary(max_size=9)).map(
        lambda raw: raw.decode("latin-1")
    )
)
def test_any_resume_token_is_one_or_refused(text: str) -> None:
    try:
        resumed = ResumeToken.parse(text).resumed(ASKED)
    except InvalidResumeToken:
        assert text != TOKEN
    else:
        assert resumed.sampling.seed == ASKED.sampling.seed


def test_what_is_right_is_taken() -> None:
    """The tests above would pass if everything were refused."""
    assert ResumeToken.parse(TOKEN).resumed(ASKED) == ASKED
    with pytest.raises(InvalidResumeToken):
        ResumeToken.parse(TOKEN[:-9])
