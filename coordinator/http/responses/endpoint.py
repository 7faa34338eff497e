"""POST /v1/responses. Knows HTTP and `Service`; decides nothing."""

from __future__ import annotations

import time
import uuid

import msgspec

from coordinator.conversation.message import MessageForm
from coordinator.http.answering.endpoints import Call
from coordinator.http.answering.waiting import finish_all, follow, wait_s, wanted
from coordinator.http.chat.answer import ChatInProgress, submit_chat
from coordinator.http.errors import AnswerFailed, BadRequest
from coordinator.http.openai.common import names_in, renamed
from coordinator.http.openai.served import model_defaults, require_served
from coordinator.http.responses.body import LIMIT, ParsedResponse, parse_response
from coordinator.http.responses.errors import RESPONSES_ERRORS
from coordinator.http.responses.events import ResponseEvents
from coordinator.http.responses.response import ResponseWriter
from coordinator.http.wire.exchange import EVENTS, Exchange
from coordinator.service import Service
from coordinator.timelines.arrival import Arrival


class Responses:
    """Answers agents. Nothing of a response is stored."""

    errors = RESPONSES_ERRORS

    def __init__(self, service: Service, form: MessageForm) -> None:
        """`form` is how the model writes thoughts and calls. Raises ModelDirectoryError."""
        self._service = service
        self._form = form
        self._defaults = model_defaults(service.model_path)

    async def answer(self, call: Call) -> None:
        """Sends the whole response."""
        service, exchange = self._service, call.exchange
        parsed = parse_response(call.body, self._defaults)
        require_served(parsed.model, service.config)
        request = parsed.request.named(f"resp_{uuid.uuid4().hex}")
        parsed = msgspec.structs.replace(parsed, request=request)
        one = await self._submit(parsed, exchange.arrival)
        writer = ResponseWriter(parsed, one, int(time.time()), service.config.served_model_name)
        async with wanted(service, call.receive, [one.mailbox]):
            if parsed.stream:
                return await self._stream(exchange, writer)
            await finish_all(service, [one.mailbox])
            await one.settle()
            await exchange.send_json(writer.whole())

    async def _submit(self, parsed: ParsedResponse, arrival: Arrival) -> ChatInProgress:
        try:
            (one,) = await submit_chat(self._service, parsed.request, self._form, arrival)
        except BadRequest as error:
            raise renamed(error, names_in(LIMIT, "input") | {"messages": "input"}) from None
        return one

    async def _stream(self, exchange: Exchange, writer: ResponseWriter) -> None:
        one, events = writer.one, ResponseEvents(writer)
        await exchange.start(EVENTS)
        await exchange.send_event(events.first())
        try:
            await follow(exchange, one.mailbox, wait_s(self._service), events.next, one.settle)
        except AnswerFailed as failure:
            return await exchange.end(events.failure(failure.error))
        await exchange.end(b"")
