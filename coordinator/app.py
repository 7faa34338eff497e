"""The HTTP surface: routes, status codes and event streams. Everything else is `Service`'s."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from coordinator import admin, info, not_yet
from coordinator.generation import Generation
from coordinator.intake import tokenize
from coordinator.replies import FAULTS, error_reply, json_reply, stream_error
from coordinator.schema import BadRequest, ParsedBody, parse_generate
from coordinator.service import Service, TooBusy, Unavailable

CLIENT_LEFT = 499
"""Nobody reads it; it is what access logs of proxies show."""
LATE_S = 5.0
"""The service ends what takes too long; a handler waits so much longer than that."""


class BodyTooLarge(Exception):
    """413."""


def create_app(service: Service) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(title="kvrelay", version=info.VERSION, lifespan=lifespan)
    app.state.service = service
    app.include_router(info.router)
    app.include_router(admin.router)
    app.include_router(not_yet.router)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)

    @app.api_route("/generate", methods=["POST", "PUT"], response_model=None)
    async def generate(request: Request) -> Response:
        """SGLang's native generation endpoint; see the README for its fields."""
        try:
            raw = msgspec.json.decode(await _read_body(request, service.config.max_body_bytes))
            if not isinstance(raw, dict):
                raise BadRequest("the body must be a JSON object")
            body = parse_generate(raw)
            generations = await _submit_all(service, body)
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        except BodyTooLarge as error:
            return error_reply(413, str(error))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return error_reply(400, f"the body is no JSON: {error}")
        except FAULTS as error:
            return error_reply(*_status(error))
        wants_list = body.is_batch or len(generations) > 1
        if body.stream:
            intervals = [
                prompt.sampling.stream_interval or 1
                for prompt in body.prompts
                for _ in range(prompt.sampling.n)
            ]
            events = _event_stream(service, generations, intervals, wants_list)
            return StreamingResponse(events, media_type="text/event-stream")
        return await _whole(service, request, generations, wants_list)

    return app


async def _refused(request: Request, error: Exception) -> Response:
    """An unknown path or method, in the shape of every other error."""
    assert isinstance(error, HTTPException)
    return error_reply(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


async def _failed(request: Request, error: Exception) -> Response:
    """Our fault; the server logs the error itself."""
    return error_reply(500, "internal error; the coordinator's log has the details")


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """Raises BodyTooLarge, before it reads if the client said the length."""
    length = request.headers.get("content-length", "")
    body = bytearray()
    if not length.isdigit() or int(length) <= max_bytes:
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                break
        else:
            return bytes(body)
    raise BodyTooLarge(f"the body has more than the {max_bytes} bytes that are taken at most")


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


def _status(error: Exception) -> tuple[int, str]:
    if isinstance(error, BadRequest):
        return 400, str(error)
    if isinstance(error, TooBusy):
        return 429, str(error)
    assert isinstance(error, Unavailable)
    return 503, str(error)


async def _whole(
    service: Service, request: Request, generations: list[Generation], wants_list: bool
) -> Response:
    """Waits for all answers; a client that leaves cancels them, on every node."""
    timeout_s = service.config.request_timeout_s + LATE_S
    answered = asyncio.create_task(_all_done(generations, timeout_s))
    left = asyncio.create_task(_client_left(request))
    try:
        await asyncio.wait({answered, left}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            return Response(status_code=CLIENT_LEFT)
        answered.result()
        for generation in generations:
            if generation.error is not None:
                return error_reply(generation.error.status_code, generation.error.message)
        now = asyncio.get_running_loop().time()
        results = [generation.result(now) for generation in generations]
        return json_reply(results if wants_list else results[0])
    finally:
        answered.cancel()
        left.cancel()
        for generation in generations:
            if not generation.done:
                service.cancel(generation.request_id)


async def _all_done(generations: list[Generation], timeout_s: float) -> None:
    for generation in generations:
        while not generation.done:
            await generation.changed(timeout_s)


async def _client_left(request: Request) -> None:
    """Returns when the client has disconnected; its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _event_stream(
    service: Service, generations: list[Generation], intervals: list[int], with_index: bool
) -> AsyncIterator[bytes]:
    """Server-sent events of all answers as they come. Starlette closes this generator when the
    client disconnects, which cancels what is unfinished."""
    updates: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue(maxsize=64)

    async def follow(index: int, generation: Generation, interval: int) -> None:
        shown = 0
        extra = {"index": index} if with_index else {}
        is_last = False
        while not is_last:
            await generation.changed(service.config.request_timeout_s + LATE_S)
            is_last = generation.done
            if is_last or len(generation.output_ids) >= shown + interval:
                shown = len(generation.output_ids)
                now = asyncio.get_running_loop().time()
                await updates.put((_event(generation, now, extra), is_last))

    followers = [
        asyncio.create_task(follow(i, g, interval))
        for i, (g, interval) in enumerate(zip(generations, intervals, strict=True))
    ]
    try:
        unfinished = len(generations)
        while unfinished:
            event, is_last = await updates.get()
            yield event
            unfinished -= is_last
        yield b"data: [DONE]\n\n"
    finally:
        for follower in followers:
            follower.cancel()
        for generation in generations:
            if not generation.done:
                service.cancel(generation.request_id)


def _event(generation: Generation, now: float, extra: dict[str, Any]) -> bytes:
    if generation.error is not None:
        body: dict[str, Any] = stream_error(generation.error) | extra
    else:
        body = generation.result(now) | extra
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
