"""What a busy coordinator tells its clients, and what that costs it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.channel import Channel
from protocol.messages import Load
from tests.support.coordinator.http_servers import Served, run_served, served
from tests.support.coordinator.nodes import RATE, heartbeat, load_of
from tests.support.coordinator.services import D0

PARAMS = {"max_new_tokens": 4, "ignore_eos": True}
DIALECTS: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"text": "a", "sampling_params": PARAMS}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 4}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}),
    ("/v1/responses", {"input": "a"}),
]


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


def hear(here: Served, load: Load) -> None:
    here.service.handle(heartbeat("decode", D0, load, control_address=here.decode.address))


@pytest.mark.parametrize(("path", "body"), DIALECTS)
def test_who_would_wait_too_long_is_refused_before_anything_is_tokenized(
    decode: Channel, path: str, body: dict[str, Any]
) -> None:
    async def test() -> None:
        async with served(decode, max_wait_s=10.0) as here:
            here.service.tokenizer.encode = None  # type: ignore[assignment, method-assign]
            hear(here, load_of(queued_tokens=int(30 * RATE)))
            reply = await here.ask("POST", path, body)
            assert reply.status == 429 and 21 <= int(reply.headers["retry-after"]) <= 23
            assert "come back in" in reply.error["message"]

    run_served(test)


def test_who_has_waited_too_long_gets_the_same_status(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, max_wait_s=0.5) as here:
            first, second = await here.connect(), await here.connect()
            body = {"input_ids": [5] * int(0.3 * RATE), "sampling_params": PARAMS}
            first.send("POST", "/generate", body)
            await here.generate()
            second.send("POST", "/generate", body)
            while not here.service.core.num_waiting:
                await asyncio.sleep(0.01)
            hear(here, load_of(queued_tokens=int(30 * RATE)))  # it is slower than was thought
            reply = await second.reply()
            assert reply.status == 429 and int(reply.headers["retry-after"]) >= 1
            assert "its turn has not come" in reply.error["message"]

    run_served(test)


@pytest.mark.parametrize(
    ("headers", "tenants"),
    [
        ([{"x_api_key": "one"}, {"authorization": "Bearer two"}], ["key 0", "key 1"]),
        ([{}, {}], ["salt mine", "salt mine"]),
    ],
)
def test_a_tenant_is_an_api_key_or_else_a_salt(
    decode: Channel, headers: list[dict[str, str]], tenants: list[str]
) -> None:
    async def test() -> None:
        keys = ("one", "two") if headers[0] else ()
        async with served(decode, api_key=keys) as here:
            body = {"input_ids": [7], "sampling_params": PARAMS, "cache_salt": "1:mine"}
            for number, shown in enumerate(headers):
                connection = await here.connect()
                names = {name.replace("_", "-"): value for name, value in shown.items()}
                connection.send("POST", "/generate", body | {"rid": f"r{number}"}, names)
                await here.generate()
            shares = here.service.core.turns.shares
            for tenant in set(tenants):
                known = tenant.replace("mine", "6:1:mine")
                assert shares.num_unfinished(known) == tenants.count(tenant)

    run_served(test)
