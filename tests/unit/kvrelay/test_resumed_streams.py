"""Both clients go on with a stream whose coordinator has died."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from kvrelay import calls
from kvrelay.answers import Generated
from kvrelay.errors import ClientError, ConnectionBroken
from kvrelay.resuming import StreamProgress
from kvrelay.retries import RetryPolicy
from tests.support.kvrelay.scripted_server import ASKS, Ask, ScriptedServer, events, reply

BUSY = {"error": {"message": "no", "code": 429, "param": None}}


def begun(num_tokens: int, token: str | None = "t1") -> dict[str, Any]:
    """An update of a stream that has a resume token."""
    meta = {"id": "r1", "completion_tokens": num_tokens, "resume_token": token}
    return {"text": "x" * num_tokens, "output_ids": [5] * num_tokens, "meta_info": meta}


@pytest.mark.parametrize("ask", ASKS)
def test_a_stream_whose_coordinator_dies_goes_on_at_another_one(ask: Ask) -> None:
    lives = reply({"error": {"message": "it lives", "code": 400, "param": "rid"}}, 400)
    server = ScriptedServer(
        events(begun(1), begun(2, None), end='data: {"text'),
        httpx.ConnectError("refused"),
        lives,
        events(begun(3, "t2"), {"error": {"message": "stopping", "code": 503}}),
        events(begun(4, "t3") | {"meta_info": {"id": "r1", "completion_tokens": 4}}),
    )
    updates = ask(server, "stream", "x", temperature=0.5)
    assert [len(update.output_ids) for update in updates] == [1, 2, 3, 4]
    first, *_, fourth, last = [server.body(number) for number in range(5)]
    assert fourth == first | {"rid": "r1", "resume_token": "t1"}
    assert last["resume_token"] == "t2", "the newest one"
    seen = [request.headers.get("last-event-id") for request in server.requests]
    assert seen == [None, "2", "2", "2", "3"]


@pytest.mark.parametrize("ask", ASKS)
def test_a_stream_that_broke_off_before_its_first_event_is_asked_for_again(ask: Ask) -> None:
    server = ScriptedServer(events(end=""), events(begun(1)))
    assert len(ask(server, "stream", "x")) == 1
    assert server.body(0) == server.body(1)
    with pytest.raises(ConnectionBroken):
        ask(ScriptedServer(events(end="")), "stream", "x", rid="mine")


@pytest.mark.parametrize("ask", ASKS)
def test_a_proxys_word_that_the_coordinator_died_is_no_end(ask: Ask) -> None:
    gone = httpx.Response(502, text="<html>502 Bad Gateway</html>")
    server = ScriptedServer(gone, events(begun(1), end=""), gone, events(begun(2)))
    assert len(ask(server, "stream", "x")) == 2
    with pytest.raises(ConnectionBroken):
        ask(ScriptedServer(gone), "stream", "x", rid="mine")


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("last", [reply(BUSY, 401), reply(BUSY, 400)])
def test_what_a_second_coordinator_refuses_ends_the_stream(ask: Ask, last: httpx.Response) -> None:
    server = ScriptedServer(events(begun(1), end=""), last)
    with pytest.raises(ClientError) as raised:
        ask(server, "stream", "x")
    assert raised.value.status == last.status_code


def test_a_stream_is_not_resumed_for_ever() -> None:
    progress = StreamProgress(calls.generate("x", {}), RetryPolicy())
    progress.began()
    progress.saw(msgspec.convert(begun(1), Generated))
    now = 0.0
    while (following := progress.next_call(ConnectionBroken("gone"), 0.5, now)) is not None:
        now += following[1]
    assert 2 * 3.0 < now < 20.0, "longer than two leases of a coordinator"
    progress.saw(msgspec.convert(begun(2), Generated))
    assert progress.next_call(ConnectionBroken("gone"), 0.5, now) is not None, "each time anew"
