"""One POST handler before a node that writes a given text, with a form that is easy to write."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coordinator.conversation.message import MessageForm
from coordinator.http.answering.endpoints import PostEndpoints, PostHandler
from coordinator.service import Service
from protocol.channel import Channel
from protocol.hashing import tokens_from_bytes
from protocol.messages import Failed, Generate, TokenOut, TokensOut
from tests.support.coordinator.scripted_form import ScriptedForm
from tests.support.coordinator.services import D0, DEADLINE_S, received, run, running_service

MakeHandler = Callable[[Service, MessageForm], PostHandler]
CACHED = 3
"""Tokens of each prompt that the node says it had."""


@dataclass(frozen=True)
class Told:
    """What came for a body."""

    status: int
    raw: bytes
    generate: Generate | None
    """What the node was asked for; None if it was asked for nothing."""
    prompt: str
    """The text of the prompt."""

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """The names of the events, with what they carry."""
        events = []
        for event in self.raw.decode().strip("\n").split("\n\n"):
            name, data = event.split("\n")
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        return events


def ask(
    make: MakeHandler,
    decode: Channel,
    body: dict[str, Any],
    text: str = "",
    finish: str = "stop",
    fails: str = "",
) -> Told:
    """What a handler answers if the model writes `text`, token by token; `fails`: then it fails."""
    told: list[Told] = []

    async def test() -> None:
        async with running_service(decode) as service:
            told.append(await _answered(make, service, decode, body, text, finish, fails))

    run(test)
    return told[0]


async def _answered(
    make: MakeHandler,
    service: Service,
    decode: Channel,
    body: dict[str, Any],
    text: str,
    finish: str,
    fails: str,
) -> Told:
    sent: list[Any] = []
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode()})

    async def send(message: Any) -> None:
        sent.append(message)

    async def nobody(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it went elsewhere")

    endpoints = PostEndpoints(nobody, {"/asked": make(service, ScriptedForm())}, 1 << 20)
    scope = {"type": "http", "path": "/asked", "method": "POST", "headers": []}
    handling = asyncio.create_task(endpoints(scope, incoming.get, send))
    asking = asyncio.create_task(_asked(decode))
    await asyncio.wait({handling, asking}, return_when=asyncio.FIRST_COMPLETED)
    generate, prompt = None, ""
    if not handling.done():
        generate = await asking
        prompt = service.tokenizer.decode(tokens_of(generate), skip_special_tokens=False)
        tokens = await service.tokenizer.encode(text, with_special_tokens=False)
        for i, token in enumerate(tokens):
            ends = finish if i == len(tokens) - 1 and not fails else ""
            out = TokenOut(generate.attempt, i, [token], ends, cached_tokens=CACHED)
            service.handle(TokensOut([out], D0))
            await asyncio.sleep(0)
        if fails:
            service.handle(Failed(generate.attempt, fails, "request", D0))
    asking.cancel()
    await asyncio.wait_for(handling, DEADLINE_S)
    raw = b"".join(message.get("body", b"") for message in sent)
    return Told(sent[0]["status"], raw, generate, prompt)


async def _asked(decode: Channel) -> Generate:
    """What the node is asked for next; signs that it may stop with earlier work are left out."""
    while True:
        for message in await received(decode, 1):
            if isinstance(message, Generate):
                return message


def tokens_of(generate: Generate) -> list[int]:
    """The token ids of a prompt."""
    return list(tokens_from_bytes(generate.tokens))
