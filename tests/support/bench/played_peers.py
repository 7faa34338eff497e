"""Servers that play a peer: they note what they are asked, and answer what they are told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Reply = int | Json | list[Json]
"""A status other than 200, one document, or the events of a stream."""


NUM_TOKENS = 3
"""The length of the answers of `sglang_reply` and `vllm_reply`, whose ids are 100, 101, …"""
ADDRESS = {"remote_engine_id": "e", "remote_block_ids": [1]}
ABOUT = {"model_path": "m", "served_model_name": "m", "data": [{"id": "m", "object": "model"}]}
"""What a server tells of itself to a router."""


def sglang_reply(path: str, body: Json) -> Reply:
    """Each event has only what is new; one of them brings two tokens."""
    assert path == "/generate"
    meta = {"prompt_tokens": len(body["input_ids"]), "cached_tokens": 2}
    events: list[Json] = [{"output_ids": [100], "meta_info": meta}]
    return [*events, {"output_ids": [101, 102], "meta_info": meta}]


def vllm_reply(path: str, body: Json) -> Reply:
    """A prefill server tells where its pages are."""
    assert path == "/v1/completions"
    if not body["stream"]:
        assert body["max_tokens"] == 1 and "stream_options" not in body
        return {"choices": [{"text": "w"}], "kv_transfer_params": ADDRESS}
    usage = {"prompt_tokens": len(body["prompt"]), "prompt_tokens_details": {"cached_tokens": 2}}
    chunks = [{"choices": [{"text": "w", "token_ids": [id]}]} for id in (100, 101, 102)]
    return [*chunks, {"choices": [], "usage": usage}]


class PlayedServer:
    """Answers each POST with `reply(path, body)`, and says that it is well. Use it as an
    asynchronous context manager."""

    def __init__(self, reply: Callable[[str, Json], Reply]) -> None:
        self.bodies: list[Json] = []
        self.heads: list[str] = []
        self.port = 0
        self._reply = reply

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> PlayedServer:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split(" ", 2)
            if method == "GET":
                writer.write(_answer_of(ABOUT))
            elif method == "POST":  # else a router has tried another version of HTTP
                body = json.loads(await reader.readexactly(_length_of(head)))
                self.heads.append(head)
                self.bodies.append(body)
                writer.write(_answer_of(self._reply(path, body)))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever asked has gone
        finally:
            writer.close()


def _length_of(head: str) -> int:
    (line,) = (line for line in head.lower().split("\r\n") if line.startswith("content-length"))
    return int(line.split(":")[1])


def _answer_of(reply: Reply) -> bytes:
    status, kind, content = 200, "application/json", json.dumps(reply)
    if isinstance(reply, int):
        status = reply
    elif isinstance(reply, list):
        kind = "text/event-stream"
        content = "".join(f"data: {json.dumps(event)}\n\n" for event in reply)
        content += "data: [DONE]\n\n"
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nConnection: close\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return (head + content).encode()
