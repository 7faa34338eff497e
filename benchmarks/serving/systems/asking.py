"""How a request is put to each of the systems that are compared.

A system may have several servers. Unless its own router stands before them, whatever a router could
know is known here: users with the same key always meet the same server, and the two halves of a
disaggregated pair are asked by the client itself, so that no proxy stands between.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from benchmarks.serving.systems.events import EventReader, KvrelayReader, SglangReader, VllmReader
from kvrelay.bench.http_post import HttpPost, Target, post

Json = dict[str, Any]
OnEvent = Callable[[bytes], None]
SERVED_NAME = "m"
"""The model's name at peers."""
ROUTING_KEY = "X-SMG-Routing-Key"
"""The header by which sglang-router's policy `manual` keeps a user at one prefill server."""
REMOTE_PREFILL: Json = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""What vLLM's prefill server is asked for: its pages' address, for the decode server."""


@dataclass(frozen=True)
class Question:
    """A prompt of token ids, the length of its answer, and its user's key."""

    prompt: Sequence[int]
    num_output_tokens: int
    key: int


class Refused(Exception):
    """A server answered with another status than 200."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}: {body.decode(errors='replace')[:300]}")
        self.status = status


class System(Protocol):
    """A running system of one or more servers."""

    def reader(self) -> EventReader:
        """Returns what reads the events of one answer."""
        ...

    async def ask(self, question: Question, on_event: OnEvent) -> None:
        """Puts a question, and hands on each event of the answer until its end. Raises Refused or
        OSError."""
        ...


class Kvrelay:
    """One coordinator, which routes."""

    def __init__(self, url: str) -> None:
        self._target = Target.parse(url, "")

    def reader(self) -> EventReader:
        return KvrelayReader()

    async def ask(self, question: Question, on_event: OnEvent) -> None:
        await _stream(self._target, "/generate", native_body(question), on_event)


class SglangReplicas:
    """Servers that each do everything, for users by their key; or SGLang's router, alone."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._targets = [Target.parse(url, "") for url in urls]

    def reader(self) -> EventReader:
        return SglangReader()

    async def ask(self, question: Question, on_event: OnEvent) -> None:
        target = self._targets[question.key % len(self._targets)]
        await _stream(target, "/generate", native_body(question), on_event)


class RoutedSglangPairs:
    """Prefill and decode servers behind SGLang's router, which reads no prompts of token ids there:
    it is told the key of the user, as a service can that knows its conversations."""

    def __init__(self, url: str) -> None:
        self._target = Target.parse(url, "")

    def reader(self) -> EventReader:
        return SglangReader()

    async def ask(self, question: Question, on_event: OnEvent) -> None:
        target = dataclasses.replace(self._target, headers=(f"{ROUTING_KEY}: {question.key}",))
        await _stream(target, "/generate", native_body(question), on_event)


class SglangPairs:
    """Prefill and decode servers, which find each other by the room that the client names."""

    def __init__(self, prefills: Sequence[tuple[str, int]], decodes: Sequence[str]) -> None:
        """`prefills` are URLs and bootstrap ports."""
        self._prefills = [(Target.parse(url, ""), port) for url, port in prefills]
        self._decodes = [Target.parse(url, "") for url in decodes]

    def reader(self) -> EventReader:
        return SglangReader()

    async def ask(self, question: Question, on_event: OnEvent) -> None:
        prefill, port = self._prefills[question.key % len(self._prefills)]
        decode = self._decodes[question.key % len(self._decodes)]
        room = {
            "bootstrap_host": prefill.host,
            "bootstrap_port": port,
            "bootstrap_room": secrets.randbits(63),
        }
        body = native_body(question) | room
        computing = asyncio.create_task(_stream(prefill, "/generate", body, lambda _: None))
        try:
            await _stream(decode, "/generate", body, on_event)
            await computing
        finally:
            computing.cancel()


class VllmReplicas:
    """Servers that each do everything, for users by their key; or vLLM's router, alone."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._targets = [Target.parse(url, "") for url in urls]

    def reader(self) -> EventReader:
        return VllmReader()

    async def ask(self, question: Question, on_event: OnEvent) -> None:
        target = self._targets[question.key % len(self._targets)]
        await _stream(target, "/v1/completions", completions_body(question), on_event)


class VllmPairs:
    """Prefill and decode servers. The prefill server is asked for one token and tells where its
    pages are; the decode server fetches them."""

    def __init__(self, prefills: Sequence[str], decodes: Sequence[str]) -> None:
        self._prefills = [Target.parse(url, "") for url in prefills]
        self._decodes = [Target.parse(url, "") for url in decodes]

    def reader(self) -> EventReader:
        return VllmReader()

    async def ask(self, question: Question, on_event: OnEvent) -> None:
        prefill = self._prefills[question.key % len(self._prefills)]
        decode = self._decodes[question.key % len(self._decodes)]
        body = completions_body(question)
        first = {key: value for key, value in body.items() if key != "stream_options"}
        first |= {"stream": False, "max_tokens": 1, "kv_transfer_params": REMOTE_PREFILL}
        answer = msgspec.json.decode(await _whole(prefill, "/v1/completions", first))
        body |= {"kv_transfer_params": answer["kv_transfer_params"]}
        await _stream(decode, "/v1/completions", body, on_event)


def native_body(question: Question) -> Json:
    """Returns the body for POST /generate of kvrelay and SGLang."""
    return {
        "input_ids": question.prompt,
        "stream": True,
        "sampling_params": {
            "max_new_tokens": question.num_output_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
        },
    }


def completions_body(question: Question) -> Json:
    """Returns the body for POST /v1/completions of vLLM."""
    return {
        "model": SERVED_NAME,
        "prompt": question.prompt,
        "max_tokens": question.num_output_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


async def _stream(target: Target, path: str, body: Json, on_event: OnEvent) -> None:
    status, refusal = await post(target, path, msgspec.json.encode(body), on_event)
    if status != 200:
        raise Refused(status, refusal)


class _WholePost(HttpPost):
    """A POST whose answer is one JSON document."""

    answer = b""

    def on_body(self, body: bytes) -> None:
        self.answer += body


async def _whole(target: Target, path: str, body: Json) -> bytes:
    """Returns the whole answer to a POST. Raises Refused or OSError."""
    request = target.request(path, msgspec.json.encode(body))
    transport, exchange = await asyncio.get_running_loop().create_connection(
        lambda: _WholePost(request, lambda _: None), target.host, target.port
    )
    try:
        status = await exchange.status
    finally:
        transport.abort()
    if status != 200:
        raise Refused(status, exchange.answer)
    return exchange.answer
