"""`AsyncClient`: the client for programs with an event loop."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import httpx

from kvrelay import calls
from kvrelay.answers import ChatResult, ChatUpdate, Generated
from kvrelay.calls import ApiCall, Prompt
from kvrelay.connection import LIMITS, READ_TIMEOUT_S, Connection, key_of, url_of
from kvrelay.errors import ClientError
from kvrelay.events import ChatEventReader, EventReader, GeneratedEventReader
from kvrelay.resuming import StreamProgress
from kvrelay.retries import DEFAULT_RETRY, RetryPolicy

T = TypeVar("T")


class AsyncClient:
    """An asynchronous client with the methods of `Client`. Use it with `async with`, or await
    `close`. A task that is cancelled cancels its request at the cluster. Every method raises
    ClientError.
    """

    def __init__(
        self,
        url: str | None = None,
        admin_token: str = "",
        timeout_s: float = READ_TIMEOUT_S,
        api_key: str | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Does not connect yet. The arguments are those of `Client`."""
        where, key = url_of(url, os.environ), key_of(api_key, os.environ)
        self._connection = Connection(where, admin_token, key, timeout_s, retry)
        carrier = transport or httpx.AsyncHTTPTransport(limits=LIMITS)
        self._http = httpx.AsyncClient(**self._connection.options(), transport=carrier)
        self._chance = chance
        self._sleep = sleep

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def generate(self, prompt: Prompt, **params: Any) -> Generated:
        """Answers a prompt, a text or token ids, and returns the whole answer."""
        return await self.call(calls.generate(prompt, params))

    def stream(self, prompt: Prompt, **params: Any) -> AsyncIterator[Generated]:
        """Answers a prompt and yields the answer as it grows: each value has all text so far."""
        return self._follow_resumed(calls.streamed(calls.generate(prompt, params)))

    async def generate_list(self, texts: Sequence[str], **params: Any) -> list[Generated]:
        """Answers several texts in one request, and returns the answers in their order."""
        return await self.call(calls.generate_list(texts, params))

    async def batch(
        self, prompts: Sequence[Prompt], max_concurrent: int = 32, **params: Any
    ) -> list[Generated]:
        """Answers many prompts, each in a request of its own and at most `max_concurrent` at once.
        Returns the answers in the order of the prompts. The first error ends all others."""
        places = asyncio.Semaphore(max(1, max_concurrent))

        async def answer(prompt: Prompt) -> Generated:
            async with places:
                return await self.generate(prompt, **params)

        tasks = [asyncio.create_task(answer(prompt)) for prompt in prompts]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], model: str = "default", **params: Any
    ) -> ChatResult:
        """Answers a chat with the model's own template."""
        return await self.call(calls.chat(messages, model, params))

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], model: str = "default", **params: Any
    ) -> AsyncIterator[ChatUpdate]:
        """Answers a chat and yields what is new of the answer as it grows."""
        return self._follow(calls.streamed(calls.chat(messages, model, params)), ChatEventReader())

    async def abort(self, rid: str) -> None:
        """Ends the request that was sent with this `rid`, if there is one."""
        await self.call(calls.abort(rid))

    async def flush_cache(self) -> dict[str, Any]:
        """Makes every node forget its cached pages."""
        return await self.call(calls.flush_cache())

    async def cache_stats(self) -> dict[str, Any]:
        """Returns pages, hits and moved pages, for the cluster and for each node."""
        return await self.call(calls.cache_stats())

    async def nodes(self) -> list[dict[str, Any]]:
        """Returns every live node with its load."""
        return await self.call(calls.nodes())

    async def prefixes(self, limit: int = 20) -> list[dict[str, Any]]:
        """Returns the `limit` prefixes with the most hits, and who owns them."""
        return await self.call(calls.prefixes(limit))

    async def flush(self, node: str | None = None, cache_salt: str | None = None) -> dict[str, Any]:
        """Makes nodes forget cached pages that no request holds."""
        return await self.call(calls.flush(node, cache_salt))

    async def audit(self, repair: bool = True) -> dict[str, Any]:
        """Compares the pages that nodes hold with the records of them."""
        return await self.call(calls.audit(repair))

    async def requests(
        self, limit: int = 50, state: str = "all", node: str = "", older_than_s: float = 0.0
    ) -> list[dict[str, Any]]:
        """Returns the newest requests, those that run first."""
        return await self.call(calls.requests(limit, state, node, older_than_s))

    async def timeline(self, rid: str) -> dict[str, Any]:
        """Returns where the time of a request went."""
        return await self.call(calls.timeline(rid))

    async def drain(self, node: str, keep: bool = False) -> dict[str, Any]:
        """Keeps new requests from a node until `undrain`, or until it restarts unless `keep`."""
        return await self.call(calls.drain(node, keep))

    async def undrain(self, node: str) -> dict[str, Any]:
        """Lets a node get requests again."""
        return await self.call(calls.undrain(node))

    async def explain(
        self, prompt: Prompt, cache_salt: str = "", **sampling_params: Any
    ) -> dict[str, Any]:
        """Returns where a prompt would go now, and why. Runs nothing."""
        return await self.call(calls.explain(prompt, cache_salt, sampling_params))

    async def call(self, call: ApiCall[T]) -> T:
        """Makes any call of `kvrelay.calls` and returns its result. Raises ClientError."""
        response = await self._send(call, is_stream=False)
        return call.read(response.content)

    async def _follow_resumed(self, call: ApiCall[Any]) -> AsyncIterator[Generated]:
        """Yields the updates of a stream of /generate. If it breaks off, another coordinator goes
        on with it. Raises ClientError."""
        events, progress = GeneratedEventReader(), StreamProgress(call, self._connection.retry)
        while True:
            try:
                response = await self._send(call, is_stream=True)
                progress.began()
                async with aclosing(self._updates(response, events)) as updates:
                    async for update in updates:
                        progress.saw(update)
                        yield update
                return
            except ClientError as error:
                following = progress.next_call(error, self._chance(), time.monotonic())
                if following is None:
                    raise
            call, wait_s = following
            events.begin_again()
            await self._sleep(wait_s)

    async def _follow(self, call: ApiCall[Any], events: EventReader[T]) -> AsyncIterator[T]:
        """Yields the updates of a stream. Raises ClientError, also if the stream has no end."""
        async with aclosing(
            self._updates(await self._send(call, is_stream=True), events)
        ) as updates:
            async for update in updates:
                yield update

    async def _updates(self, response: httpx.Response, events: EventReader[T]) -> AsyncGenerator[T]:
        """Yields the updates of a stream whose head has come."""
        try:
            async for data in response.aiter_bytes():
                for update in events.feed(data):
                    yield update
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._connection.failure(error) from error
        finally:
            await response.aclose()
        self._connection.require_finished(events)

    async def _send(self, call: ApiCall[Any], is_stream: bool) -> httpx.Response:
        """Sends a call, again and again as far as it is safe, and returns the response with status
        200. Of a stream only the head is read. Raises ClientError."""
        request = self._connection.request(call)
        num_failed = 0
        while True:
            try:
                return await self._attempt(call, request, is_stream)
            except ClientError as error:
                num_failed += 1
                wait_s = self._connection.wait_s(call, num_failed, error, self._chance())
                if wait_s is None:
                    raise
            await self._sleep(wait_s)

    async def _attempt(
        self, call: ApiCall[Any], request: Mapping[str, Any], is_stream: bool
    ) -> httpx.Response:
        try:
            response = await self._http.send(self._http.build_request(**request), stream=is_stream)
            if response.status_code == 200:
                return response
            body = await response.aread()
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._connection.failure(error) from error
        await response.aclose()
        raise self._connection.refusal(call, response.status_code, body, response.headers)
