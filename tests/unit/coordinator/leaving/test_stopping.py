"""A coordinator that is told to stop: what runs goes on, what is left ends with an error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from protocol.channel import Channel
from tests.support.coordinator.http_servers import run_served, served

STREAM = {"text": "a", "stream": True, "sampling_params": {"max_new_tokens": 3}}


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


def test_what_runs_goes_on_and_what_comes_is_served_until_it_ends(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            old = await here.connect()
            old.send("POST", "/generate", STREAM)
            first = await here.generate()
            here.tokens(first, 0, [5])
            here.tell_to_stop()
            assert (await here.ask("GET", "/ready")).status == 503
            new = await here.connect()
            new.send("POST", "/generate", STREAM | {"stream": False})
            second = await here.generate()
            here.tokens(second, 0, [5, 6, 7], "length")
            reply = await new.reply()
            assert reply.status == 200 and reply.headers["connection"] == "close"
            assert await new.at_end()
            here.tokens(first, 1, [6, 7], "length")
            *_, last, done = (await old.reply()).events
            assert json.loads(last)["output_ids"] == [5, 6, 7] and done == "[DONE]"
            assert await asyncio.wait_for(here.has_closed(), 20)

    run_served(test)


def test_what_has_not_ended_in_time_ends_with_an_error(
    decode: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with served(decode, drain_timeout_s=0.3) as here:
            ends = []
            for path, body in (
                ("/generate", STREAM),
                ("/v1/completions", {"model": "tiny", "prompt": "a", "stream": True}),
                ("/generate", STREAM | {"stream": False}),
            ):
                client = await here.connect()
                client.send("POST", path, body)
                here.tokens(await here.generate(), 0, [5])
                ends.append(client)
            here.tell_to_stop()
            native, openai, whole = [await client.reply() for client in ends]
            for stream in (native, openai):
                *_, error, done = stream.events
                assert "the coordinator is stopping" in json.loads(error)["error"]["message"]
                assert done == "[DONE]"
            error = json.loads(native.events[-2])["error"]
            assert error["code"] == 503 and error["retryable"] is True
            assert whole.status == 503 and "stopping" in whole.error["message"]
            assert await asyncio.wait_for(here.has_closed(), 20)

    run_served(test)
    assert "Traceback" not in caplog.text and "Cancel" not in caplog.text


def test_a_second_signal_ends_the_waiting(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, drain_timeout_s=600) as here:
            client = await here.connect()
            client.send("POST", "/generate", STREAM)
            here.tokens(await here.generate(), 0, [5])
            here.tell_to_stop()
            assert not here.server.should_exit
            here.tell_to_stop()
            assert (await client.reply()).events[-1] == "[DONE]"

    run_served(test)
