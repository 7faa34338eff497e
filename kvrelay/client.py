"""`Client`: talks to a running cluster over HTTP, or to a server of SGLang's API."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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
C = TypeVar("C", bound="Client")


class Client:
    """A synchronous client. Use it as a context manager, or call `close`. Threads may share it.

    Parameters of `generate` and `stream` are those of POST /generate, by their names: those of
    sampling, such as `max_new_tokens`, `temperature` and `regex`, and those beside them, such as
    `return_logprob` and `cache_salt`. The methods from `nodes` on are for operators, and need the
    `admin_token` if the cluster has one; they return what /admin/* answers, which /docs of a
    coordinator describes. Every method raises ClientError.
    """

    def __init__(
        self,
        url: str | None = None,
        admin_token: str = "",
        timeout_s: float = READ_TIMEOUT_S,
        api_key: str | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Does not connect yet. Without a `url` that of the environment (KVRELAY_URL) is used, or
        port 30000 of this host; without an `api_key` the first of the environment's
        (KVRELAY_API_KEY). `timeout_s` is the longest wait for the next part of an answer. `chance`
        gives numbers from [0, 1), for waits between attempts. Raises ClientError if `url` is no
        HTTP URL."""
        where, key = url_of(url, os.environ), key_of(api_key, os.environ)
        self._connection = Connection(where, admin_token, key, timeout_s, retry)
        carrier = transport or httpx.HTTPTransport(limits=LIMITS)
        self._http = httpx.Client(**self._connection.options(), transport=carrier)
        self._chance = chance
        self._sleep = sleep

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def generate(self, prompt: Prompt, **params: Any) -> Generated:
        """Answers a prompt, a text or token ids, and returns the whole answer."""
        return self.call(calls.generate(prompt, params))

    def stream(self, prompt: Prompt, **params: Any) -> Iterator[Generated]:
        """Answers a prompt and yields the answer as it grows: each value has all text so far. The
        cluster stops generating when the iterator is closed."""
        return self._follow_resumed(calls.streamed(calls.generate(prompt, params)))

    def generate_list(self, texts: Sequence[str], **params: Any) -> list[Generated]:
        """Answers several texts in one request, and returns the answers in their order. A parameter
        beside those of sampling may be a list with one value for each."""
        return self.call(calls.generate_list(texts, params))

    def batch(
        self, prompts: Sequence[Prompt], max_concurrent: int = 32, **params: Any
    ) -> list[Generated]:
        """Answers many prompts, each in a request of its own and at most `max_concurrent` at once.
        Returns the answers in the order of the prompts. After an error no request is begun."""
        pool = ThreadPoolExecutor(max(1, min(max_concurrent, len(prompts))))
        try:
            return list(pool.map(lambda prompt: self.generate(prompt, **params), prompts))
        finally:
            pool.shutdown(cancel_futures=True)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], model: str = "default", **params: Any
    ) -> ChatResult:
        """Answers a chat with the model's own template. `params` are those of OpenAI's chat
        completions, such as `max_tokens`, `tools` and `response_format`."""
        return self.call(calls.chat(messages, model, params))

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], model: str = "default", **params: Any
    ) -> Iterator[ChatUpdate]:
        """Answers a chat and yields what is new of the answer as it grows."""
        return self._follow(calls.streamed(calls.chat(messages, model, params)), ChatEventReader())

    def abort(self, rid: str) -> None:
        """Ends the request that was sent with this `rid`; it keeps what it has answered. Does
        nothing if there is none."""
        self.call(calls.abort(rid))

    def flush_cache(self) -> dict[str, Any]:
        """Makes every node forget its cached pages. The cluster refuses while requests run."""
        return self.call(calls.flush_cache())

    def cache_stats(self) -> dict[str, Any]:
        """Returns pages, hits and moved pages, for the cluster and for each node."""
        return self.call(calls.cache_stats())

    def nodes(self) -> list[dict[str, Any]]:
        """Returns every live node with its load."""
        return self.call(calls.nodes())

    def prefixes(self, limit: int = 20) -> list[dict[str, Any]]:
        """Returns the `limit` prefixes with the most hits, and who owns them."""
        return self.call(calls.prefixes(limit))

    def flush(self, node: str | None = None, cache_salt: str | None = None) -> dict[str, Any]:
        """Makes nodes forget cached pages that no request holds: one node or all (None), the pages
        of one tenant ("" is the one without a cache_salt) or all (None)."""
        return self.call(calls.flush(node, cache_salt))

    def audit(self, repair: bool = True) -> dict[str, Any]:
        """Compares the pages that nodes hold with the record in Redis and with the coordinator's
        mirror of it. Corrects what differs, if `repair`."""
        return self.call(calls.audit(repair))

    def requests(
        self, limit: int = 50, state: str = "all", node: str = "", older_than_s: float = 0.0
    ) -> list[dict[str, Any]]:
        """Returns the `limit` newest requests, first those that run, then those that ended lately.

        `state` may be waiting, computing, answering, ended, unfinished or all; `node` is one that
        they were sent to; they arrived at least `older_than_s` ago."""
        return self.call(calls.requests(limit, state, node, older_than_s))

    def timeline(self, rid: str) -> dict[str, Any]:
        """Returns where the time of a request went, by the `rid` of its answer, or the `id`."""
        return self.call(calls.timeline(rid))

    def drain(self, node: str, keep: bool = False) -> dict[str, Any]:
        """Keeps new requests from a node until `undrain` or until it restarts; with `keep` also
        when it restarts. Its pages can still be fetched."""
        return self.call(calls.drain(node, keep))

    def undrain(self, node: str) -> dict[str, Any]:
        """Lets a node get requests again."""
        return self.call(calls.undrain(node))

    def explain(
        self, prompt: Prompt, cache_salt: str = "", **sampling_params: Any
    ) -> dict[str, Any]:
        """Returns where a prompt (a text or token ids) would go now, and why. Runs nothing."""
        return self.call(calls.explain(prompt, cache_salt, sampling_params))

    def call(self, call: ApiCall[T]) -> T:
        """Makes any call of `kvrelay.calls` and returns its result. Raises ClientError."""
        response = self._send(call, is_stream=False)
        return call.read(response.content)

    def _follow_resumed(self, call: ApiCall[Any]) -> Iterator[Generated]:
        """Yields the updates of a stream of /generate. If it breaks off, another coordinator goes
        on with it. Raises ClientError."""
        events, progress = GeneratedEventReader(), StreamProgress(call, self._connection.retry)
        while True:
            try:
                response = self._send(call, is_stream=True)
                progress.began()
                with closing(self._updates(response, events)) as updates:
                    for update in updates:
                        progress.saw(update)
                        yield update
                return
            except ClientError as error:
                following = progress.next_call(error, self._chance(), time.monotonic())
                if following is None:
                    raise
            call, wait_s = following
            events.begin_again()
            self._sleep(wait_s)

    def _follow(self, call: ApiCall[Any], events: EventReader[T]) -> Iterator[T]:
        """Yields the updates of a stream. Raises ClientError, also if the stream has no end."""
        yield from self._updates(self._send(call, is_stream=True), events)

    def _updates(self, response: httpx.Response, events: EventReader[T]) -> Generator[T]:
        """Yields the updates of a stream whose head has come."""
        try:
            for data in response.iter_bytes():
                yield from events.feed(data)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._connection.failure(error) from error
        finally:
            response.close()
        self._connection.require_finished(events)

    def _send(self, call: ApiCall[Any], is_stream: bool) -> httpx.Response:
        """Sends a call, again and again as far as it is safe, and returns the response with status
        200. Of a stream only the head is read. Raises ClientError."""
        request = self._connection.request(call)
        num_failed = 0
        while True:
            try:
                return self._attempt(call, request, is_stream)
            except ClientError as error:
                num_failed += 1
                wait_s = self._connection.wait_s(call, num_failed, error, self._chance())
                if wait_s is None:
                    raise
            self._sleep(wait_s)

    def _attempt(
        self, call: ApiCall[Any], request: Mapping[str, Any], is_stream: bool
    ) -> httpx.Response:
        try:
            response = self._http.send(self._http.build_request(**request), stream=is_stream)
            if response.status_code == 200:
                return response
            body = response.read()
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._connection.failure(error) from error
        response.close()
        raise self._connection.refusal(call, response.status_code, body, response.headers)
