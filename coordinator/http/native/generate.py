"""POST and PUT /generate: SGLang's native endpoint, written to ASGI itself.

All load comes through here, so it goes past FastAPI's routing, validation and response objects:
they took a third of a request's time. Knows HTTP and `Service`; decides nothing.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.answers.answer import AnswerError
from coordinator.answers.request import Request
from coordinator.http.answering.submitting import (
    cancel_unfinished,
    require_so_many_answers,
    require_turn,
)
from coordinator.http.answering.waiting import side_by_side, wait_s, wanted
from coordinator.http.checking import parse_object
from coordinator.http.errors import ClientLeft
from coordinator.http.native.events import StreamEvents
from coordinator.http.native.following import AnswerInProgress, AnswerStream
from coordinator.http.native.intake import compile_grammar, make_request, tokenize
from coordinator.http.native.resuming import last_event_id, resume
from coordinator.http.native.schema import GeneratePrompt, ParsedBody, parse_generate
from coordinator.http.native.sglang import SGLangFormatter
from coordinator.http.replies import FAULTS, answer_error_reply, error_reply, fault_reply
from coordinator.http.sessions.turns import begin_turn
from coordinator.http.wire.arrivals import arrival_of
from coordinator.http.wire.bodies import read_body
from coordinator.http.wire.direct_writer import direct_writer
from coordinator.http.wire.exchange import EVENTS, Exchange
from coordinator.http.wire.request_ids import request_id
from coordinator.leaving.resume_token import ResumeToken
from coordinator.mailbox import Mailbox
from coordinator.service import Service
from coordinator.sessions.turns import TurnRequest
from coordinator.timelines.arrival import Arrival

log = logging.getLogger(__name__)


class GenerateEndpoint:
    """An ASGI application that answers /generate and passes all other requests on to `app`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._wait_s = wait_s(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/generate":
            return await self._app(scope, receive, send)
        arrival = arrival_of(scope, time.monotonic())
        exchange = Exchange(arrival, send, direct_writer(scope))
        try:
            await self._answer(scope, receive, exchange)
        except ClientLeft:
            return
        except FAULTS as error:
            await exchange.reply(fault_reply(error))
        except Exception:
            log.exception("POST /generate %s failed", request_id(scope))
            await exchange.fail()

    async def _answer(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        if scope["method"] not in ("POST", "PUT"):
            return await exchange.reply(_not_allowed(scope))
        raw = await read_body(scope, receive, self._service.config.max_body_bytes)
        body = parse_generate(parse_object(raw))
        num_seen = last_event_id(scope) if body.resume_token is not None else 0
        arrival = exchange.arrival.parsed(self._service.now())
        answers = await _submit_all(self._service, body, arrival, num_seen)
        try:
            async with wanted(self._service, receive, [one.mailbox for one in answers]):
                if body.stream:
                    await self._stream(exchange, body, answers)
                elif failure := await self._first_error(answers):
                    await exchange.reply(answer_error_reply(failure))
                else:
                    await exchange.send_json(await _results(body, answers))
        finally:
            for one in answers:
                await one.end_turn()

    async def _first_error(self, answers: Sequence[AnswerInProgress]) -> AnswerError | None:
        """Waits for the end of every answer. Returns the first error among them, or None."""
        for one in answers:
            await one.mailbox.finished(self._wait_s)
            await one.end_turn()
        errors = (one.answer.error for one in answers)
        return next((error for error in errors if error is not None), None)

    async def _stream(
        self, exchange: Exchange, body: ParsedBody, answers: Sequence[AnswerInProgress]
    ) -> None:
        """Sends the events of all answers as they come."""
        await exchange.start(EVENTS)
        if not _wants_list(body, answers):
            await self._stream_of(exchange, body, answers[0]).run(self._wait_s)
        else:
            streams = [
                self._stream_of(exchange, body, one, index) for index, one in enumerate(answers)
            ]
            await side_by_side([stream.run(self._wait_s) for stream in streams])
        await exchange.send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _stream_of(
        self,
        exchange: Exchange,
        body: ParsedBody,
        one: AnswerInProgress,
        index: int | None = None,
    ) -> AnswerStream:
        extra = None if index is None else {"index": index}
        first_meta = None
        if body.is_resumable:
            answer = one.answer
            token = ResumeToken.of(answer.request, answer.rid, self._service.address)
            first_meta = {"resume_token": token.text}
        only_new = self._service.config.stream_output
        events = StreamEvents(one.formatter, only_new, extra, first_meta)
        return AnswerStream(exchange, one, events, body.event_ids)


async def _submit_all(
    service: Service, body: ParsedBody, arrival: Arrival, num_seen: int
) -> list[AnswerInProgress]:
    """Starts every answer that a body asks for; if one is refused, none of them. The client of a
    body that resumes a stream has `num_seen` tokens already."""
    require_so_many_answers(service, body.prompts, "sampling_params.n")
    if body.resume_token is None:
        require_turn(service, body.prompts, arrival)
    tokens = [await tokenize(prompt, service.tokenizer) for prompt in body.prompts]
    grammars = [
        await compile_grammar(prompt, service.tokenizer, service.grammars)
        for prompt in body.prompts
    ]
    if body.resume_token is not None:
        return [await _resume(service, body, tokens[0], arrival, grammars[0], num_seen)]
    if body.turn is not None:
        return [await _submit_turn(service, body, body.turn, tokens[0], arrival, grammars[0])]
    answers: list[AnswerInProgress] = []
    try:
        for prompt, ids, grammar in zip(body.prompts, tokens, grammars, strict=True):
            for choice in range(prompt.sampling.n):
                one = _submit(service, body, prompt, ids, choice, arrival, grammar, bool(answers))
                answers.append(one)
    except BaseException:
        cancel_unfinished(service, [one.mailbox for one in answers])
        raise
    return answers


async def _submit_turn(
    service: Service,
    body: ParsedBody,
    asked: TurnRequest,
    ids: list[int],
    arrival: Arrival,
    grammar: str,
) -> AnswerInProgress:
    """Starts the one answer of a body that is a turn of a session."""
    prompt = body.prompts[0]
    turn = await begin_turn(service, asked, prompt.rid, ids)
    prompt = msgspec.structs.replace(prompt, rid=turn.rid)
    try:
        one = _submit(service, body, prompt, turn.prompt, 0, arrival, grammar)
    except BaseException:
        await turn.discard()
        raise
    return replace(one, turn=turn)


async def _resume(
    service: Service, body: ParsedBody, ids: list[int], arrival: Arrival, grammar: str, seen: int
) -> AnswerInProgress:
    """Goes on with an answer that another coordinator had begun."""
    request = _request(service, body, body.prompts[0], ids, 0, arrival, grammar)
    mailbox = await resume(service, body, request)
    return replace(_in_progress(service, body, body.prompts[0], mailbox), num_seen=seen)


def _submit(
    service: Service,
    body: ParsedBody,
    prompt: GeneratePrompt,
    ids: list[int],
    choice: int,
    arrival: Arrival,
    grammar: str,
    is_next: bool = False,
) -> AnswerInProgress:
    request = _request(service, body, prompt, ids, choice, arrival, grammar)
    return _in_progress(service, body, prompt, service.submit(request, is_next=is_next))


def _request(
    service: Service,
    body: ParsedBody,
    prompt: GeneratePrompt,
    ids: list[int],
    choice: int,
    arrival: Arrival,
    grammar: str,
) -> Request:
    # Checked first, since without nodes no length is short enough.
    service.core.require_ready()
    longest = service.max_total_tokens
    request = make_request(prompt, ids, choice, service.tokenizer, longest, arrival, grammar)
    # Logprobs are not kept for whoever takes an answer over: it is computed again.
    is_kept = body.is_resumable and not request.sampling.wants_logprobs
    return replace(request, resume_key=secrets.token_hex(16)) if is_kept else request


def _in_progress(
    service: Service, body: ParsedBody, prompt: GeneratePrompt, mailbox: Mailbox
) -> AnswerInProgress:
    tokenizer = service.tokenizer
    with_text = prompt.logprobs is not None and prompt.logprobs.with_text
    decode = partial(tokenizer.decode, skip_special_tokens=False) if with_text else None
    formatter = SGLangFormatter(mailbox.answer, decode, body.with_prompt_ids)
    return AnswerInProgress(mailbox, formatter, prompt.sampling.stream_interval)


def _wants_list(body: ParsedBody, answers: Sequence[AnswerInProgress]) -> bool:
    return body.is_batch or len(answers) > 1


async def _results(body: ParsedBody, answers: Sequence[AnswerInProgress]) -> Any:
    for one in answers:
        await one.prepare()
    now = time.monotonic()
    results = [one.formatter.result(now) for one in answers]
    return results if _wants_list(body, answers) else results[0]


def _not_allowed(scope: Scope) -> Response:
    reply = error_reply(405, f"{scope['method']} /generate: /generate takes POST and PUT")
    reply.headers["Allow"] = "POST, PUT"
    return reply
