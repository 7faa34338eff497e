"""POST /v1/chat/completions. Knows HTTP and `Service`; decides nothing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

import msgspec

from coordinator.conversation.message import MessageForm
from coordinator.http.answering.endpoints import Call
from coordinator.http.answering.waiting import finish_all, follow, side_by_side, wait_s, wanted
from coordinator.http.chat.answer import ChatInProgress, submit_chat
from coordinator.http.errors import BadRequest
from coordinator.http.openai.chats.body import ParsedChat, parse_chat
from coordinator.http.openai.chats.events import ChatEvents, usage_event
from coordinator.http.openai.chats.response import chat_completion
from coordinator.http.openai.common import names_in, renamed
from coordinator.http.openai.errors import DONE, OPENAI_ERRORS
from coordinator.http.openai.heads import ResponseHead
from coordinator.http.openai.served import FINGERPRINT, model_defaults, require_served
from coordinator.http.wire.exchange import EVENTS, Exchange
from coordinator.service import Service
from coordinator.timelines.arrival import Arrival


class ChatCompletions:
    """Answers chats."""

    errors = OPENAI_ERRORS

    def __init__(self, service: Service, form: MessageForm) -> None:
        """`form` is how the model writes thoughts and calls. Raises ModelDirectoryError."""
        self._service = service
        self._form = form
        self._defaults = model_defaults(service.model_path)
        self._pieces = service.tokenizer.pieces(skip_special_tokens=False)

    async def answer(self, call: Call) -> None:
        """Sends the whole response."""
        service, exchange = self._service, call.exchange
        parsed = parse_chat(call.body, self._defaults)
        require_served(parsed.model, service.config)
        request = parsed.request.named(f"chatcmpl-{uuid.uuid4().hex}")
        parsed = msgspec.structs.replace(parsed, request=request)
        answers = await self._submit(parsed, exchange.arrival)
        head = ResponseHead(
            id=parsed.request.rid or "",
            created=int(time.time()),
            model=service.config.served_model_name,
            fingerprint=FINGERPRINT,
        )
        mailboxes = [one.mailbox for one in answers]
        async with wanted(service, call.receive, mailboxes):
            if parsed.stream:
                return await self._stream(exchange, head, parsed, answers)
            await finish_all(service, mailboxes)
            messages = [await one.whole() for one in answers]
            response = chat_completion(head, parsed, answers, messages, self._pieces)
            await exchange.send_json(response)

    async def _submit(self, parsed: ParsedChat, arrival: Arrival) -> list[ChatInProgress]:
        try:
            return await submit_chat(self._service, parsed.request, self._form, arrival)
        except BadRequest as error:
            raise renamed(error, names_in(parsed.max_tokens_key, "messages")) from None

    async def _stream(
        self,
        exchange: Exchange,
        head: ResponseHead,
        parsed: ParsedChat,
        answers: Sequence[ChatInProgress],
    ) -> None:
        await exchange.start(EVENTS)
        await side_by_side([self._follow(exchange, head, parsed, one) for one in answers])
        last = usage_event(head, answers) if parsed.stream_options.include_usage else b""
        await exchange.end(last + DONE)

    async def _follow(
        self, exchange: Exchange, head: ResponseHead, parsed: ParsedChat, one: ChatInProgress
    ) -> None:
        """Sends the events of one answer as they come. Sending waits for a slow client."""
        events = ChatEvents(head, parsed, one, self._pieces)
        longest_s = wait_s(self._service)
        await follow(exchange, one.mailbox, longest_s, events.next, one.settle)
