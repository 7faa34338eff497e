"""POST /v1/messages and its count of tokens. Knows HTTP and `Service`; decides nothing."""

from __future__ import annotations

import uuid

import msgspec

from coordinator.conversation.message import MessageForm
from coordinator.http.answering.endpoints import Call
from coordinator.http.answering.waiting import finish_all, follow, wait_s, wanted
from coordinator.http.anthropic.body import NAMES, ParsedMessages, parse_count, parse_messages
from coordinator.http.anthropic.errors import ANTHROPIC_ERRORS
from coordinator.http.anthropic.events import MessageEvents
from coordinator.http.anthropic.message import MessageHead, whole_message
from coordinator.http.chat.answer import ChatInProgress, submit_chat
from coordinator.http.chat.prompts import tokens_of
from coordinator.http.errors import BadRequest
from coordinator.http.openai.common import renamed
from coordinator.http.openai.served import model_defaults, require_served
from coordinator.http.wire.exchange import EVENTS
from coordinator.service import Service
from coordinator.timelines.arrival import Arrival


class Messages:
    """Answers chats in Anthropic's form."""

    errors = ANTHROPIC_ERRORS

    def __init__(self, service: Service, form: MessageForm) -> None:
        """`form` is how the model writes thoughts and calls. Raises ModelDirectoryError."""
        self._service = service
        self._form = form
        self._defaults = model_defaults(service.model_path)

    async def answer(self, call: Call) -> None:
        """Sends the whole response."""
        service, exchange = self._service, call.exchange
        parsed = parse_messages(call.body, self._defaults)
        require_served(parsed.model, service.config)
        request = parsed.request.named(f"msg_{uuid.uuid4().hex}")
        parsed = msgspec.structs.replace(parsed, request=request)
        one = await self._submit(parsed, exchange.arrival)
        rid = parsed.request.rid or ""
        head = MessageHead(rid, service.config.served_model_name, parsed.max_tokens)
        async with wanted(service, call.receive, [one.mailbox]):
            if not parsed.stream:
                await finish_all(service, [one.mailbox])
                await one.settle()
                return await exchange.send_json(whole_message(head, one))
            await exchange.start(EVENTS)
            events = MessageEvents(head, one)
            await follow(exchange, one.mailbox, wait_s(service), events.next, one.settle)
            await exchange.end(b"")

    async def _submit(self, parsed: ParsedMessages, arrival: Arrival) -> ChatInProgress:
        try:
            (one,) = await submit_chat(self._service, parsed.request, self._form, arrival)
        except BadRequest as error:
            raise renamed(error, NAMES) from None
        return one


class CountTokens:
    """Counts the tokens of the prompt that a body of /v1/messages becomes."""

    errors = ANTHROPIC_ERRORS

    def __init__(self, service: Service, form: MessageForm) -> None:
        self._service = service
        self._form = form

    async def answer(self, call: Call) -> None:
        """Sends the whole response."""
        parsed = parse_count(call.body)
        require_served(parsed.model, self._service.config)
        try:
            tokens = await tokens_of(self._service, parsed.request, self._form)
        except BadRequest as error:
            raise renamed(error, NAMES) from None
        await call.exchange.send_json({"input_tokens": len(tokens)})
