"""A server that answers from a list, and both clients of it behind one face."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx

from kvrelay.async_client import AsyncClient
from kvrelay.client import Client
from kvrelay.retries import RetryPolicy

Reply = httpx.Response | Exception
URL = "http://cluster"
CHANCE = 0.5


class ScriptedServer:
    """Gives its replies one after the other, and keeps what it was asked."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []
        """How long the client has waited between its attempts."""

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        # A copy: a response is read once, and tests give the same one to both clients.
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

    def body(self, number: int = -1) -> dict[str, Any]:
        """Returns the body of one of the requests."""
        return dict(json.loads(self.requests[number].content))


Ask = Callable[..., Any]


def ask(server: ScriptedServer, method: str, *args: Any, **params: Any) -> Any:
    """Calls a method of `Client`; a stream as the list of its updates."""
    options: dict[str, Any] = params.pop("options", {})
    with Client(
        URL,
        chance=lambda: CHANCE,
        sleep=server.waits.append,
        transport=httpx.MockTransport(server.handle),
        **options,
    ) as client:
        result = getattr(client, method)(*args, **params)
        return list(result) if isinstance(result, Iterator) else result


def ask_async(server: ScriptedServer, method: str, *args: Any, **params: Any) -> Any:
    """Calls the same method of `AsyncClient`."""
    options: dict[str, Any] = params.pop("options", {})

    async def sleep(seconds: float) -> None:
        server.waits.append(seconds)

    async def call() -> Any:
        async with AsyncClient(
            URL,
            chance=lambda: CHANCE,
            sleep=sleep,
            transport=httpx.MockTransport(server.handle),
            **options,
        ) as client:
            result = getattr(client, method)(*args, **params)
            if isinstance(result, AsyncIterator):
                return [update async for update in result]
            return await result

    return asyncio.run(call())


ASKS = (ask, ask_async)
FEW = RetryPolicy(max_attempts=3, first_wait_s=1.0, max_wait_s=8.0)


def reply(body: Any, status: int = 200, **headers: str) -> httpx.Response:
    return httpx.Response(
        status, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def events(*objects: Any, end: str = "data: [DONE]\n\n") -> httpx.Response:
    """A stream of these objects."""
    text = "".join(f"data: {json.dumps(one)}\n\n" for one in objects) + end
    return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})
