"""The keys of a body that name a session, and the endpoints of sessions without a Redis."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coordinator.http.errors import BadRequest
from coordinator.http.native.schema import parse_generate
from coordinator.http.replies import fault_reply
from coordinator.sessions.store import SessionRefused
from coordinator.sessions.turns import TurnRequest
from protocol.channel import Channel
from tests.support.coordinator.http_servers import run_served, served


def turn_of(**keys: Any) -> TurnRequest | None:
    return parse_generate({"text": "a"} | keys).turn


@pytest.mark.parametrize("keys", [{}, {"session_params": None}, {"session_params": {"id": None}}])
def test_without_a_name_there_is_no_session(keys: dict[str, Any]) -> None:
    assert turn_of(**keys) is None


def test_all_keys_and_null_as_their_default() -> None:
    every = {"id": "s", "rid": "r", "offset": -1, "replace": True, "drop_previous_output": True}
    asked = TurnRequest("s", rid="r", offset=-1, replace=True, drop_previous_output=True)
    assert turn_of(session_params=every) == asked
    assert turn_of(session_params=[every]) == asked
    assert turn_of(session_params=dict.fromkeys(every) | {"id": "s"}) == TurnRequest("s")
    assert turn_of(session_id="s") == TurnRequest("s")
    assert turn_of(session_id="s", session_params={"rid": "r"}) == TurnRequest("s", rid="r")


@pytest.mark.parametrize(
    ("keys", "param"),
    [
        ({"session_params": {"id": 5}}, "id"),
        ({"session_params": {"name": "s"}}, "name"),
        ({"session_params": {"id": "two\nlines"}}, "session_params.id"),
        ({"session_params": {"id": "s"}, "session_id": "t"}, "session_id"),
        ({"session_params": [{"id": "s"}, {"id": "t"}]}, "session_params"),
        ({"session_params": {"id": "s"}, "sampling_params": {"n": 2}}, "session_params"),
        ({"session_params": {"id": "s"}, "text": ["a", "b"]}, "session_params"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_what_is_wrong_is_named(keys: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest, match=param):
        turn_of(**keys)


def test_a_priority_is_that_of_all_prompts_of_a_body() -> None:
    body = parse_generate({"text": ["a", "b"], "priority": -7})
    assert [prompt.priority for prompt in body.prompts] == [-7, -7]
    assert parse_generate({"text": "a", "priority": None}).prompts[0].priority == 0


def test_sessions_and_pauses_need_redis_and_aborts_do_not() -> None:
    async def test() -> None:
        decode = Channel("127.0.0.1")
        async with served(decode, admin_token="") as here:
            for path, body in (
                ("/open_session", {"capacity_of_str_len": 5}),
                ("/close_session", {"session_id": "s"}),
                ("/pause_generation", {}),
                ("/continue_generation", None),
                ("/generate", {"text": "a", "session_id": "s"}),
            ):
                reply = await here.ask("POST", path, body)
                assert reply.status == 503 and "Redis" in reply.error["message"]
            for path, body in (("/open_session", {}), ("/close_session", {"session_id": 5})):
                assert (await here.ask("POST", path, body)).status == 400
            assert (await here.ask("POST", "/abort_request", {"rid": "x"})).status == 200
        decode.close()

    run_served(test)


def test_what_stops_everybody_asks_for_the_admin_token() -> None:
    async def test() -> None:
        decode = Channel("127.0.0.1")
        async with served(decode, admin_token="secret") as here:
            for path, body in (
                ("/pause_generation", {}),
                ("/continue_generation", {}),
                ("/abort_request", {"abort_all": True}),
            ):
                assert (await here.ask("POST", path, body)).status == 401
            assert (await here.ask("POST", "/abort_request", {"rid": "x"})).status == 200
            token = {"Authorization": "Bearer secret"}
            reply = await here.ask("POST", "/abort_request", {"abort_all": True}, **token)
            assert reply.status == 200
        decode.close()

    run_served(test)


def test_a_turn_that_its_session_does_not_take_names_the_key() -> None:
    reply = fault_reply(SessionRefused("there is no session 's'"))
    assert reply.status_code == 400
    assert json.loads(bytes(reply.body))["error"]["param"] == "session_params"
