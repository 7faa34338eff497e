"""Who may call: API keys, the admin token beside them, and pages of other origins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute

from coordinator.http.app import ROUTERS
from coordinator.http.wire.api_keys import OPEN_PATHS
from protocol.channel import Channel
from tests.support.coordinator.http_servers import Reply, run_served, served

KEYS = ("key-one", "key-two")
BODY = {"input_ids": [7], "sampling_params": {"max_new_tokens": 1, "ignore_eos": True}}
PAGE = "https://chat.example.com"


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


def every_endpoint() -> set[tuple[str, str]]:
    """Method and path of all that is served."""
    routes = [route for module in ROUTERS for route in module.router.routes]
    found = {
        (method, route.path.replace("{model:path}", "m").replace("{", "").replace("}", ""))
        for route in routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    return found | {("POST", "/generate"), ("PUT", "/generate"), ("GET", "/openapi.json")}


def assert_unauthorized(reply: Reply) -> None:
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer" and reply.headers["x-request-id"]


def test_without_a_key_nothing_answers_but_probes_and_metrics(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, api_key=KEYS) as here:
            closed = 0
            for method, path in sorted(every_endpoint()):
                reply = await here.ask(method, path, BODY)
                if path in OPEN_PATHS:
                    assert reply.status != 401, (method, path)
                    continue
                closed += 1
                assert reply.status == 401, (method, path)
            assert closed > 60
            for path in ("/nobody/names/this", "/health/", "/metrics/x", "/docs", "//health"):
                assert_unauthorized(await here.ask("GET", path))

    run_served(test)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer key-one"}, 200),
        ({"Authorization": "bearer  key-two"}, 200),
        ({"x_api_key": "key-two"}, 200),
        ({"Authorization": "Bearer none", "x_api_key": "key-one"}, 200),
        ({"Authorization": "Bearer key-one,key-two"}, 401),
        ({"Authorization": "Bearer key-on"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic key-one"}, 401),
        ({"Authorization": "key-one"}, 401),
        ({"x_api_key": "KEY-ONE"}, 401),
        ({"x_api_key": "schlüssel"}, 401),
        ({}, 401),
    ],
)
def test_a_key_is_shown_as_a_bearer_or_as_x_api_key(
    headers: dict[str, str], status: int, decode: Channel
) -> None:
    async def test() -> None:
        async with served(decode, api_key=KEYS) as here:
            reply = await here.ask("GET", "/model_info", **headers)
            assert reply.status == status
            refused = await here.ask("POST", "/generate", b"{", **headers)
            assert refused.status == (400 if status == 200 else 401)
            if status == 401:
                is_shown = "x_api_key" in headers or "Bearer k" in headers.get("Authorization", "")
                begin = "the API key that was sent" if is_shown else "send an API key"
                assert refused.error["message"].startswith(begin)

    run_served(test)


def test_a_401_has_the_shape_of_its_dialect(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, api_key=KEYS) as here:
            native = await here.ask("POST", "/generate", BODY)
            assert_unauthorized(native)
            assert (native.error["type"], native.error["code"]) == ("Unauthorized", 401)
            openai = await here.ask("POST", "/v1/chat/completions", {})
            assert_unauthorized(openai)
            assert openai.error["code"] == "invalid_api_key" and openai.error["param"] is None
            anthropic = await here.ask("POST", "/v1/messages", {})
            assert_unauthorized(anthropic)
            assert anthropic.json["type"] == "error"
            assert anthropic.error["type"] == "authentication_error"

    run_served(test)


def test_a_refused_body_does_not_disturb_the_next_request_of_its_connection(
    decode: Channel,
) -> None:
    async def test() -> None:
        async with served(decode, api_key=KEYS) as here:
            connection = await here.connect()
            large = b"x" * (1 << 20)
            assert (await connection.ask("POST", "/generate", large)).status == 401
            again = await connection.ask("GET", "/model_info", x_api_key="key-one")
            assert again.status == 200

    run_served(test)


@pytest.mark.parametrize(
    ("admin_token", "shown", "admin", "others"),
    [
        ("", "key-one", 200, 200),
        ("boss", "key-one", 401, 200),
        ("boss", "boss", 200, 200),
        ("boss", "wrong", 401, 401),
        ("", "wrong", 401, 401),
    ],
)
def test_an_admin_token_closes_admin_paths_to_keys_and_opens_all(
    admin_token: str, shown: str, admin: int, others: int, decode: Channel
) -> None:
    async def test() -> None:
        async with served(decode, api_key=KEYS, admin_token=admin_token) as here:
            bearer = f"Bearer {shown}"
            assert (await here.ask("GET", "/admin/nodes", Authorization=bearer)).status == admin
            assert (await here.ask("GET", "/model_info", Authorization=bearer)).status == others

    run_served(test)


def test_an_admin_token_alone_closes_admin_paths_alone(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, admin_token="boss") as here:
            assert (await here.ask("GET", "/model_info")).status == 200
            assert (await here.ask("GET", "/admin/nodes")).status == 401

    run_served(test)


def test_keys_are_in_no_answer(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, api_key=KEYS, admin_token="boss") as here:
            told = await here.ask("GET", "/get_server_info", x_api_key="key-one")
            assert told.status == 200 and told.json["api_key"] == "***"
            assert not any(secret in told.body for secret in (b"key-", b"boss"))

    run_served(test)


def test_a_browser_may_ask_before_it_has_shown_a_key(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, api_key=KEYS, cors_origin=(PAGE,)) as here:
            wanted = {
                "Access_Control_Request_Method": "POST",
                "Access_Control_Request_Headers": "authorization, content-type",
            }
            for path in ("/generate", "/v1/chat/completions", "/admin/nodes"):
                asked = await here.ask("OPTIONS", path, Origin=PAGE, **wanted)
                assert asked.status == 200 and asked.headers["x-request-id"]
                assert asked.headers["access-control-allow-origin"] == PAGE
                assert "POST" in asked.headers["access-control-allow-methods"]
                assert "authorization" in asked.headers["access-control-allow-headers"].lower()
                other = await here.ask("OPTIONS", path, Origin="https://evil.test", **wanted)
                assert other.status == 400
                assert "access-control-allow-origin" not in other.headers

    run_served(test)


@pytest.mark.parametrize("stream", [False, True])
def test_answers_and_refusals_can_be_read_by_pages_of_that_origin_alone(
    stream: bool, decode: Channel
) -> None:
    async def test() -> None:
        async with served(decode, api_key=KEYS, cors_origin=(PAGE,)) as here:
            refused = await here.ask("POST", "/generate", BODY, Origin=PAGE)
            assert_unauthorized(refused)
            assert refused.headers["access-control-allow-origin"] == PAGE
            for origin, is_allowed in ((PAGE, True), ("https://evil.test", False)):
                connection = await here.connect()
                headers = {"Origin": origin, "x-api-key": "key-one"}
                connection.send("POST", "/generate", BODY | {"stream": stream}, headers)
                here.tokens(await here.generate(), 0, [7], "length")
                answer = await connection.reply("POST")
                assert answer.status == 200
                assert ("access-control-allow-origin" in answer.headers) == is_allowed
                if is_allowed:
                    exposed = answer.headers["access-control-expose-headers"]
                    assert "X-Request-Id" in exposed

    run_served(test)


def test_without_cors_no_origin_is_allowed(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            answer = await here.ask("GET", "/model_info", Origin=PAGE)
            assert not [name for name in answer.headers if name.startswith("access-control")]

    run_served(test)
