"""The errors that programs catch who use the openai package, before a node that is only a
channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from protocol.channel import Channel
from protocol.messages import Cancel, Failed
from tests.support.coordinator.http_servers import Served, run_served, served
from tests.support.coordinator.services import D0, received

ASKED: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


@asynccontextmanager
async def client_of(here: Served, max_retries: int = 0) -> AsyncIterator[AsyncOpenAI]:
    url = f"http://127.0.0.1:{here.port}/v1"
    async with AsyncOpenAI(base_url=url, api_key="x", max_retries=max_retries) as client:
        yield client


def test_a_full_cluster_is_a_rate_limit_and_a_retry_helps(decode: Channel) -> None:
    async def test() -> None:
        async with (
            served(decode, max_queued_requests=1) as here,
            client_of(here) as client,
            client_of(here, max_retries=3) as patient,
        ):
            first = asyncio.create_task(client.chat.completions.create(**ASKED))
            generate = await here.generate()
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(**ASKED)
            assert refused.value.code == "rate_limit_exceeded"
            assert refused.value.response.headers["retry-after"] == "1"
            again = asyncio.create_task(patient.chat.completions.create(**ASKED))
            here.tokens(generate, 0, [100], "length")
            await first
            here.tokens(await here.generate(), 0, [100], "length")
            assert (await again).choices[0].finish_reason == "length"

    run_served(test)


def test_a_cluster_without_nodes_is_a_server_error(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, with_node=False) as here, client_of(here) as client:
            with pytest.raises(openai.InternalServerError) as refused:
                await client.chat.completions.create(**ASKED)
            assert refused.value.status_code == 503 and refused.value.type == "server_error"

    run_served(test)


def test_a_failure_within_a_stream_is_raised(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here, client_of(here) as client:
            stream = await client.chat.completions.create(**ASKED, stream=True)
            generate = await here.generate()
            here.tokens(generate, 0, [100])
            failed = Failed(generate.attempt, "the model broke", "request", D0)
            here.service.handle(failed)
            with pytest.raises(openai.APIError, match="the model broke"):
                async for _ in stream:
                    pass

    run_served(test)


def test_closing_a_stream_cancels_its_request(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here, client_of(here) as client:
            stream = await client.chat.completions.create(**ASKED, stream=True)
            generate = await here.generate()
            here.tokens(generate, 0, [100])
            async for chunk in stream:
                assert chunk.id
                break
            await stream.close()
            assert await received(decode, 1) == [Cancel(generate.attempt)]

    run_served(test)
