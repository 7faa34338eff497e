"""POST and PUT /generate: SGLang's native endpoint, written to ASGI itself.

All load comes through here, so it goes past FastAPI's routing, validation and response objects:
they took a third of a request's time. Knows HTTP and `Service`; decides nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.answers.generation import Abort, Generation
from coordinator.http.intake import tokenize
from coordinator.http.replies import FAULTS, error_reply, fault_status, json_reply, stream_error
from coordinator.http.schema import BadRequest, ParsedBody, parse_generate, parse_object
from coordinator.service import Service

LATE_S = 5.0
"""The service ends what takes too long; a handler waits so much longer than that."""
JSON = (b"content-type", b"application/json")
NOT_ALLOWED = json_reply(
    {"error": {"message": "/generate takes POST and PUT"}}, 405, {"Allow": "POST, PUT"}
)
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


class BodyTooLarge(Exception):
    """413."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the body has more than the {max_bytes} bytes that are taken at most")


class ClientLeft(Exception):
    """Before its request was whole."""


class GenerateEndpoint:
    """ASGI middleware: answers /generate, hands on all else to `app`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._wait_s = service.config.request_timeout_s + LATE_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/generate":
            return await self._app(scope, receive, send)
        if scope["method"] not in ("POST", "PUT"):
            return await NOT_ALLOWED(scope, receive, send)
        try:
            raw = await _read(scope, receive, self._service.config.max_body_bytes)
            body = parse_generate(parse_object(raw))
            generations = await _submit_all(self._service, body)
        except ClientLeft:
            return
        except (BodyTooLarge, *FAULTS) as error:
            return await error_reply(_status(error), str(error))(scope, receive, send)
        watch = asyncio.create_task(self._watch(receive, generations))
        try:
            if body.stream:
                await self._stream(send, body, generations)
            elif failed := await self._first_failed(generations):
                await error_reply(failed.status_code, failed.message)(scope, receive, send)
            else:
                await _reply(send, body, generations)
        finally:
            watch.cancel()
            self._cancel_unfinished(generations)

    async def _watch(self, receive: Receive, generations: Sequence[Generation]) -> None:
        """A client that leaves cancels its request, on every node."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._cancel_unfinished(generations)

    def _cancel_unfinished(self, generations: Sequence[Generation]) -> None:
        for generation in generations:
            if not generation.done:
                self._service.cancel(generation.request_id)
                generation.abandon()

    async def _first_failed(self, generations: Sequence[Generation]) -> Abort | None:
        """Waits for every answer; why there is none."""
        for generation in generations:
            await generation.finished(self._wait_s)
        return next((g.error for g in generations if g.error is not None), None)

    async def _stream(
        self, send: Send, body: ParsedBody, generations: Sequence[Generation]
    ) -> None:
        """Server-sent events of all answers as they come. `send` waits for a slow client."""
        intervals = [
            prompt.sampling.stream_interval or 1
            for prompt in body.prompts
            for _ in range(prompt.sampling.n)
        ]
        await send({"type": "http.response.start", "status": 200, "headers": [EVENTS]})
        if not _wants_list(body, generations):
            await self._follow(send, generations[0], intervals[0], {})
        else:
            await self._follow_all(send, generations, intervals)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _follow_all(
        self, send: Send, generations: Sequence[Generation], intervals: Sequence[int]
    ) -> None:
        followers = [
            asyncio.create_task(self._follow(send, generation, interval, {"index": i}))
            for i, (generation, interval) in enumerate(zip(generations, intervals, strict=True))
        ]
        try:
            await asyncio.gather(*followers)
        finally:
            for follower in followers:
                follower.cancel()

    async def _follow(
        self, send: Send, generation: Generation, interval: int, extra: dict[str, Any]
    ) -> None:
        """Sends an event per `interval` tokens and one at the end."""
        shown = 0
        while True:
            await generation.changed(self._wait_s)
            is_last = generation.done
            if is_last or len(generation.output_ids) >= shown + interval:
                shown = len(generation.output_ids)
                event = _event(generation, extra)
                await send({"type": "http.response.body", "body": event, "more_body": True})
            if is_last:
                return


async def _read(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The body. Raises BodyTooLarge, before it reads if the client said the length; ClientLeft."""
    length = next((value for key, value in scope["headers"] if key == b"content-length"), b"")
    if length.isdigit() and int(length) > max_bytes:
        raise BodyTooLarge(max_bytes)
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise BodyTooLarge(max_bytes)
    return bytes(body)


async def _submit_all(service: Service, body: ParsedBody) -> list[Generation]:
    """Starts every answer of a body, or none."""
    num_answers = sum(prompt.sampling.n for prompt in body.prompts)
    if num_answers > service.max_unfinished > 0:
        raise BadRequest(
            f"the body asks for {num_answers} answers; this cluster takes at most "
            f"{service.max_unfinished} at once"
        )
    tokens = [await tokenize(prompt, service.tokenizer) for prompt in body.prompts]
    generations: list[Generation] = []
    try:
        for prompt, ids in zip(body.prompts, tokens, strict=True):
            for choice in range(prompt.sampling.n):
                rid = prompt.rid
                if rid is not None and prompt.sampling.n > 1:
                    rid = f"{rid}_{choice}"
                generations.append(service.submit(prompt, ids, choice, rid))
    except BaseException:
        for generation in generations:
            service.cancel(generation.request_id)
        raise
    return generations


def _status(error: Exception) -> int:
    return 413 if isinstance(error, BodyTooLarge) else fault_status(error)


def _wants_list(body: ParsedBody, generations: Sequence[Generation]) -> bool:
    return body.is_batch or len(generations) > 1


async def _reply(send: Send, body: ParsedBody, generations: Sequence[Generation]) -> None:
    now = time.monotonic()
    results = [generation.result(now) for generation in generations]
    raw = msgspec.json.encode(results if _wants_list(body, generations) else results[0])
    headers = [JSON, (b"content-length", b"%d" % len(raw))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


def _event(generation: Generation, extra: dict[str, Any]) -> bytes:
    if generation.error is not None:
        body: dict[str, Any] = stream_error(generation.error) | extra
    else:
        body = generation.result(time.monotonic()) | extra
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
