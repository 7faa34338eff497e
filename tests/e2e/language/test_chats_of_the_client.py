"""Chats through both clients, against a real cluster."""

from __future__ import annotations

import asyncio

import pytest

from kvrelay import AsyncClient, Client
from kvrelay.errors import InvalidCall, NothingThere
from tests.support.processes.clusters import Cluster

MESSAGES = [
    {"role": "system", "content": "You answer in short."},
    {"role": "user", "content": "My dog is called Bramo. What is my dog called?"},
]


def test_a_chat_is_answered_at_once_and_as_it_grows(tiny_cluster: Cluster) -> None:
    with Client(tiny_cluster.local.url) as client:
        reply = client.chat(MESSAGES, max_tokens=32, temperature=0)
        again = client.chat(MESSAGES, max_tokens=32, temperature=0)
        usage = {"include_usage": True}
        params = {"max_tokens": 32, "temperature": 0, "stream_options": usage}
        updates = list(client.stream_chat(MESSAGES, **params))
    assert "Bramo" in reply.text and again.text == reply.text
    assert reply.choices[0].finish_reason == "stop" and reply.tool_calls == ()
    assert reply.usage is not None and again.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert again.usage.cached_tokens > 0
    assert "".join(update.text for update in updates) == reply.text
    assert updates[-1].usage is not None
    assert updates[-1].usage.completion_tokens == reply.usage.completion_tokens


def test_chats_run_side_by_side_in_an_event_loop(tiny_cluster: Cluster) -> None:
    async def run() -> list[str]:
        async with AsyncClient(tiny_cluster.local.url) as client:
            chats = (client.chat(MESSAGES, max_tokens=32, temperature=0) for _ in range(4))
            replies = await asyncio.gather(*chats)
            stream = client.stream_chat(MESSAGES, max_tokens=32, temperature=0)
            streamed = "".join([update.text async for update in stream])
        return [streamed, *(reply.text for reply in replies)]

    texts = asyncio.run(run())
    assert len(set(texts)) == 1 and "Bramo" in texts[0]


def test_refusals_name_what_is_wrong(tiny_cluster: Cluster) -> None:
    with Client(tiny_cluster.local.url) as client:
        with pytest.raises(NothingThere, match="not served") as unknown:
            client.chat(MESSAGES, model="nobody")
        with pytest.raises(InvalidCall, match="temperature") as wrong:
            client.chat(MESSAGES, temperature=-1)
    assert (unknown.value.status, unknown.value.param) == (404, "model")
    assert (wrong.value.status, wrong.value.param) == (400, "temperature")
