"""Streams over a real connection, whose events are written by the call that brings the tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.http.native.events import StreamEvents
from protocol.channel import Channel
from protocol.messages import Failed, Generate, TokenOut, TokensOut
from tests.support.coordinator.http_servers import Connection, Reply, Served, run_served, served
from tests.support.coordinator.services import D0, received

NUM_TOKENS = 6
BODY = {
    "input_ids": [7],
    "sampling_params": {"max_new_tokens": NUM_TOKENS, "ignore_eos": True},
    "stream": True,
}


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


async def ask(here: Served, **more: object) -> Connection:
    client = await here.connect()
    client.send("POST", "/generate", BODY | more)
    return client


def lengths(reply: Reply) -> list[int]:
    """How many tokens each event has; the ids are those that the node sent, in order."""
    *events, done = reply.events
    assert done == "[DONE]"
    ids = [json.loads(event)["output_ids"] for event in events]
    assert all(some == list(range(100, 100 + len(some))) for some in ids)
    return [len(some) for some in ids]


def test_tokens_that_come_within_one_turn_of_the_loop_are_events_of_their_own(
    decode: Channel,
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await ask(here)
            generate = await here.generate()
            for start in range(NUM_TOKENS - 1):
                here.tokens(generate, start, [100 + start])
            await asyncio.sleep(0)
            here.tokens(generate, NUM_TOKENS - 1, [105], "length")
            assert lengths(await client.reply("POST")) == [1, 2, 3, 4, 5, 6]

    run_served(test)


def test_tokens_that_wait_to_be_read_become_one_event(
    decode: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await ask(here)
            generate = await here.generate()
            here.tokens(generate, 0, [100])
            one, two, three = (
                TokensOut([TokenOut(generate.attempt, start, [100 + start])], D0)
                for start in (1, 2, 3)
            )
            waiting: list[list[TokensOut]] = [[one, two], [three], []]
            with monkeypatch.context() as patched:
                patched.setattr(here.service._channel, "drain", lambda: waiting.pop(0))
                here.service.tick()
            assert not waiting
            here.tokens(generate, 4, [104, 105], "length")
            assert lengths(await client.reply("POST")) == [1, 4, 6]

    run_served(test)


def test_an_interval_holds_back_all_but_the_first_token_and_the_end(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            params = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True, "stream_interval": 3}
            client = await ask(here, sampling_params=params)
            generate = await here.generate()
            for start in range(NUM_TOKENS - 1):
                here.tokens(generate, start, [100 + start])
            here.tokens(generate, NUM_TOKENS - 1, [105], "length")
            assert lengths(await client.reply("POST")) == [1, 4, 6]

    run_served(test)


def test_while_a_client_does_not_read_what_comes_becomes_one_event(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await ask(here)
            generate = await here.generate()
            here.tokens(generate, 0, [100])
            (connection,) = here.server.server_state.connections
            connection.pause_writing()  # as the transport does when its buffer is full
            here.tokens(generate, 1, [101])
            await asyncio.sleep(0)  # the handler waits for the client now
            for start in (2, 3):
                here.tokens(generate, start, [100 + start])
            connection.resume_writing()
            # The handler has not gone on yet, and its event must come before the next one.
            here.tokens(generate, 4, [104])
            await asyncio.sleep(0)
            here.tokens(generate, 5, [105], "length")
            shown = lengths(await client.reply("POST"))
            assert shown in ([1, 2, 5, 6], [1, 2, 6])

    run_served(test)


def test_an_answer_that_fails_tells_it_in_its_event_and_others_of_the_body_go_on(
    decode: Channel,
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await ask(here, input_ids=[[7], [8]])
            both = [m for m in await received(decode, 2) if isinstance(m, Generate)]
            failing, other = sorted(both, key=lambda generate: generate.tokens)
            for generate in (failing, other):
                here.tokens(generate, 0, [100])
            failed = Failed(failing.attempt, "it is too long", "request", D0)
            here.service.handle(failed)
            here.tokens(other, 1, [101, 102, 103, 104, 105], "length")
            *events, done = (await client.reply("POST")).events
            of_each: dict[int, list[Any]] = {0: [], 1: []}
            for event in map(json.loads, events):
                of_each[event["index"]].append(event)
            assert "it is too long" in of_each[0][-1]["error"]["message"] and done == "[DONE]"
            assert [len(event["output_ids"]) for event in of_each[1]] == [1, 6]

    run_served(test)


def test_an_error_of_ours_ends_its_own_stream_alone(
    decode: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            clients, generates = [], []
            for _ in range(2):
                clients.append(await ask(here))
                generates.append(await here.generate())
            whole = StreamEvents.next

            def fails_once(events: StreamEvents, now: float) -> Any:
                monkeypatch.setattr(StreamEvents, "next", whole)
                raise RuntimeError("planted")

            monkeypatch.setattr(StreamEvents, "next", fails_once)
            for generate in generates:
                here.tokens(generate, 0, [100])
            for generate in generates:
                here.tokens(generate, 1, [101, 102, 103, 104, 105], "length")
            replies = [await client.reply("POST") for client in clients]
            failed = [reply for reply in replies if "internal error" in reply.events[0]]
            (other,) = [reply for reply in replies if reply not in failed]
            assert len(failed) == 1 and lengths(other) == [1, 6]

    run_served(test)
