"""POST and PUT /generate: SGLang's native endpoint, written to ASGI itself.

All load comes through here, so it goes past FastAPI's routing, validation and response objects:
they took a third of a request's time. Knows HTTP and `Service`; decides nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.answers.answer import Answer, AnswerError
from coordinator.http.intake import compile_grammar, make_request, tokenize
from coordinator.http.replies import (
    FAULTS,
    answer_error_reply,
    error_reply,
    fault_status,
    json_reply,
)
from coordinator.http.schema import (
    BadRequest,
    GeneratePrompt,
    ParsedBody,
    parse_generate,
    parse_object,
)
from coordinator.http.sglang import SGLangFormatter, stream_error
from coordinator.mailbox import Mailbox
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


@dataclass(frozen=True)
class AnswerInProgress:
    """One of the answers that a body asks for, and how it is shown."""

    mailbox: Mailbox
    formatter: SGLangFormatter
    stream_interval: int
    """Tokens between two events of a stream."""

    @property
    def answer(self) -> Answer:
        return self.mailbox.answer


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
            answers = await _submit_all(self._service, body)
        except ClientLeft:
            return
        except (BodyTooLarge, *FAULTS) as error:
            return await error_reply(_status(error), str(error))(scope, receive, send)
        watch = asyncio.create_task(self._watch(receive, answers))
        try:
            if body.stream:
                await self._stream(send, body, answers)
            elif failure := await self._first_error(answers):
                await answer_error_reply(failure)(scope, receive, send)
            else:
                await _reply(send, body, answers)
        finally:
            watch.cancel()
            self._cancel_unfinished(answers)

    async def _watch(self, receive: Receive, answers: Sequence[AnswerInProgress]) -> None:
        """Cancels the requests of a client that leaves, on every node."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._cancel_unfinished(answers)

    def _cancel_unfinished(self, answers: Sequence[AnswerInProgress]) -> None:
        for one in answers:
            if not one.answer.is_done:
                self._service.cancel(one.answer.request_id)

    async def _first_error(self, answers: Sequence[AnswerInProgress]) -> AnswerError | None:
        """Waits for every answer; returns why there is none."""
        for one in answers:
            await one.mailbox.finished(self._wait_s)
        errors = (one.answer.error for one in answers)
        return next((error for error in errors if error is not None), None)

    async def _stream(
        self, send: Send, body: ParsedBody, answers: Sequence[AnswerInProgress]
    ) -> None:
        """Sends the events of all answers as they come. `send` waits for a slow client."""
        await send({"type": "http.response.start", "status": 200, "headers": [EVENTS]})
        if not _wants_list(body, answers):
            await self._follow(send, answers[0], {})
        else:
            await self._follow_all(send, answers)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _follow_all(self, send: Send, answers: Sequence[AnswerInProgress]) -> None:
        followers = [
            asyncio.create_task(self._follow(send, one, {"index": i}))
            for i, one in enumerate(answers)
        ]
        try:
            await asyncio.gather(*followers)
        finally:
            for follower in followers:
                follower.cancel()

    async def _follow(self, send: Send, one: AnswerInProgress, extra: dict[str, Any]) -> None:
        """Sends an event per `stream_interval` tokens and one at the end."""
        answer = one.answer
        shown = 0
        while True:
            await one.mailbox.changed(self._wait_s)
            is_last = answer.is_done
            if is_last or len(answer.output_ids) >= shown + one.stream_interval:
                shown = len(answer.output_ids)
                event = _event(one, extra)
                await send({"type": "http.response.body", "body": event, "more_body": True})
            if is_last:
                return


async def _read(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Returns the body. Raises ClientLeft, and BodyTooLarge: before it reads, if the client said
    the length."""
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


async def _submit_all(service: Service, body: ParsedBody) -> list[AnswerInProgress]:
    """Starts every answer of a body, or none."""
    num_answers = sum(prompt.sampling.n for prompt in body.prompts)
    max_unfinished = service.core.max_unfinished
    if num_answers > max_unfinished > 0:
        raise BadRequest(
            f"the body asks for {num_answers} answers; this cluster takes at most "
            f"{max_unfinished} at once"
        )
    tokens = [await tokenize(prompt, service.tokenizer) for prompt in body.prompts]
    grammars = [
        await compile_grammar(prompt, service.tokenizer, service.grammars)
        for prompt in body.prompts
    ]
    answers: list[AnswerInProgress] = []
    try:
        for prompt, ids, grammar in zip(body.prompts, tokens, grammars, strict=True):
            for choice in range(prompt.sampling.n):
                answers.append(_submit(service, prompt, ids, grammar, choice))
    except BaseException:
        for one in answers:
            service.cancel(one.answer.request_id)
        raise
    return answers


def _submit(
    service: Service, prompt: GeneratePrompt, ids: list[int], grammar: str, choice: int
) -> AnswerInProgress:
    service.core.require_ready()
    tokenizer = service.tokenizer
    request = make_request(prompt, ids, choice, tokenizer, service.max_total_tokens, grammar)
    mailbox = service.submit(request)
    with_text = prompt.logprobs is not None and prompt.logprobs.with_text
    decode = partial(tokenizer.decode, skip_special_tokens=False) if with_text else None
    formatter = SGLangFormatter(mailbox.answer, decode)
    return AnswerInProgress(mailbox, formatter, prompt.sampling.stream_interval or 1)


def _status(error: Exception) -> int:
    return 413 if isinstance(error, BodyTooLarge) else fault_status(error)


def _wants_list(body: ParsedBody, answers: Sequence[AnswerInProgress]) -> bool:
    return body.is_batch or len(answers) > 1


async def _reply(send: Send, body: ParsedBody, answers: Sequence[AnswerInProgress]) -> None:
    now = time.monotonic()
    results = [one.formatter.result(now) for one in answers]
    raw = msgspec.json.encode(results if _wants_list(body, answers) else results[0])
    headers = [JSON, (b"content-length", b"%d" % len(raw))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


def _event(one: AnswerInProgress, extra: dict[str, Any]) -> bytes:
    error = one.answer.error
    body = one.formatter.result(time.monotonic()) if error is None else stream_error(error)
    return b"data: " + msgspec.json.encode(body | extra) + b"\n\n"
