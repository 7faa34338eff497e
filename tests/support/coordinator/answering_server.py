"""The whole HTTP server before a decode node that answers every request with the same text."""

from __future__ import annotations

import asyncio
import json
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvloop

from protocol.channel import Channel
from protocol.messages import (
    AuditPages,
    AuditReply,
    CacheFlushed,
    FlushCache,
    Generate,
    TokenOut,
    TokensOut,
)
from protocol.prompt_logprobs import PromptLogprobs, first_position, num_positions
from protocol.sampling import Sampling, TokenLogprobs
from tests.support.coordinator.http_servers import Served, served
from tests.support.coordinator.nodes import heartbeat
from tests.support.coordinator.services import D0, DEADLINE_S

NUM_EACH = 3
"""Tokens that come together."""
HEARTBEAT_S = 0.1
LOGPROB = -0.5


class AnsweringServer:
    """A server on a thread of its own, and a client for it."""

    def __init__(self, **settings: Any) -> None:
        """`settings` are those of the coordinator that are not as usual."""
        self.text = "Hello"
        """What the model answers, as far as `max_new_tokens` go."""
        self.http = httpx.Client(timeout=DEADLINE_S)
        self._port = 0
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()))

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(DEADLINE_S), "the server did not start"

    def stop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(DEADLINE_S)
        self.http.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def ask(self, path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        raw = json.dumps(body).encode()
        return self.http.post(f"{self.url}{path}", content=raw, headers=headers)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        decode = Channel("127.0.0.1")
        async with served(decode, **self._settings) as here:
            self._port = here.port
            node = asyncio.create_task(self._answer_all(here))
            self._started.set()
            await self._ended.wait()
            node.cancel()
        decode.close()

    async def _answer_all(self, here: Served) -> None:
        while True:
            here.service.handle(heartbeat("decode", D0, control_address=here.decode.address))
            for message in await asyncio.to_thread(here.decode.drain, HEARTBEAT_S):
                if isinstance(message, Generate):
                    await self._answer(here, message)
                elif isinstance(message, FlushCache):
                    here.service.handle(CacheFlushed(D0, message.flush_id, num_pages=0))
                elif isinstance(message, AuditPages):
                    here.service.handle(AuditReply(D0, message.audit_id, hashes=b""))

    async def _answer(self, here: Served, generate: Generate) -> None:
        text = await here.service.tokenizer.encode(self.text, with_special_tokens=False)
        ids = [*text, *here.service.tokenizer.eos_token_ids[:1]]
        has_end = len(ids) <= generate.max_new_tokens
        ids = ids[: generate.max_new_tokens]
        for begin in range(0, max(1, len(ids)), NUM_EACH):
            some = ids[begin : begin + NUM_EACH]
            is_last = begin + NUM_EACH >= len(ids)
            out = TokenOut(
                generate.attempt,
                begin,
                some,
                ("stop" if has_end else "length") if is_last else "",
                logprobs=[_logprobs(generate.sampling) for _ in some],
                prompt_logprobs=None if begin else _of_prompt(generate.sampling),
            )
            here.service.handle(TokensOut([out], D0))
            await asyncio.sleep(0)


@contextmanager
def answering_server(**settings: Any) -> Iterator[AnsweringServer]:
    server = AnsweringServer(**settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _logprobs(sampling: Sampling) -> TokenLogprobs:
    top = [(token, LOGPROB) for token in range(max(0, sampling.num_top_logprobs))]
    return TokenLogprobs(LOGPROB, top, [LOGPROB] * len(sampling.logprob_token_ids))


def _of_prompt(sampling: Sampling) -> PromptLogprobs | None:
    num, top = num_positions(sampling), max(0, sampling.num_top_logprobs)
    if not num:
        return None
    num_each = 1 + top + len(sampling.logprob_token_ids)
    return PromptLogprobs(
        start=first_position(sampling),
        num_positions=num,
        num_top=top,
        num_wanted=len(sampling.logprob_token_ids),
        logprobs=array("f", [LOGPROB] * (num * num_each)).tobytes(),
        top_ids=array("i", [*range(top)] * num).tobytes(),
    )
