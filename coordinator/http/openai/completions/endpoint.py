"""POST /v1/completions. Knows HTTP and `Service`; decides nothing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

import msgspec

from coordinator.http.answering.endpoints import Call
from coordinator.http.answering.submitting import submit_all
from coordinator.http.answering.waiting import (
    finish_all,
    follow,
    side_by_side,
    wait_s,
    wanted,
)
from coordinator.http.errors import BadRequest
from coordinator.http.openai.common import names_in, renamed
from coordinator.http.openai.completions.body import ParsedCompletions, parse_completions
from coordinator.http.openai.completions.choice import KIND, Completion, CompletionEvents
from coordinator.http.openai.errors import DONE, OPENAI_ERRORS
from coordinator.http.openai.heads import ResponseHead, usage_of
from coordinator.http.openai.served import FINGERPRINT, model_defaults, require_served
from coordinator.http.wire.events import event_of
from coordinator.http.wire.exchange import EVENTS, Exchange
from coordinator.mailbox import Mailbox
from coordinator.service import Service
from coordinator.timelines.arrival import Arrival


class Completions:
    """Goes on with texts."""

    errors = OPENAI_ERRORS

    def __init__(self, service: Service) -> None:
        """Raises ModelDirectoryError."""
        self._service = service
        self._defaults = model_defaults(service.model_path)

    async def answer(self, call: Call) -> None:
        """Sends the whole response."""
        service, exchange = self._service, call.exchange
        parsed = parse_completions(call.body, self._defaults)
        require_served(parsed.model, service.config)
        parsed = _named(parsed, f"cmpl-{uuid.uuid4().hex}")
        mailboxes = await self._submit(parsed, exchange.arrival)
        head = ResponseHead(
            id=parsed.rid or "",
            created=int(time.time()),
            model=service.config.served_model_name,
            fingerprint=FINGERPRINT,
        )
        answers = [
            Completion(mailbox, index, parsed, service.tokenizer)
            for index, mailbox in enumerate(mailboxes)
        ]
        async with wanted(service, call.receive, mailboxes):
            if parsed.stream:
                return await self._stream(exchange, head, parsed, answers)
            await finish_all(service, mailboxes)
            response = head.fields(KIND)
            response["choices"] = [one.choice() for one in answers]
            response["usage"] = _usage(parsed, answers)
            await exchange.send_json(response)

    async def _submit(self, parsed: ParsedCompletions, arrival: Arrival) -> list[Mailbox]:
        special = parsed.with_special_tokens
        try:
            return await submit_all(self._service, parsed.prompts, arrival, special)
        except BadRequest as error:
            raise renamed(error, names_in("max_tokens")) from None

    async def _stream(
        self,
        exchange: Exchange,
        head: ResponseHead,
        parsed: ParsedCompletions,
        answers: Sequence[Completion],
    ) -> None:
        await exchange.start(EVENTS)
        await side_by_side([self._follow(exchange, head, parsed, one) for one in answers])
        last = b""
        if parsed.stream_options.include_usage:
            usage = _usage(parsed, answers)
            last = event_of(head.fields(KIND) | {"choices": [], "usage": usage})
        await exchange.end(last + DONE)

    async def _follow(
        self, exchange: Exchange, head: ResponseHead, parsed: ParsedCompletions, one: Completion
    ) -> None:
        """Sends the events of one answer as they come. Sending waits for a slow client."""
        events = CompletionEvents(head, parsed, one)
        await follow(exchange, one.mailbox, wait_s(self._service), events.next)


def _usage(parsed: ParsedCompletions, answers: Sequence[Completion]) -> dict[str, object]:
    return usage_of([one.usage for one in answers], len(parsed.prompts))


def _named(parsed: ParsedCompletions, made_up: str) -> ParsedCompletions:
    """Returns the same with names: each prompt of several has a number in its own."""
    rid = parsed.rid or made_up
    is_batch = len(parsed.prompts) > 1
    prompts = [
        msgspec.structs.replace(prompt, rid=f"{rid}_{i}" if is_batch else rid)
        for i, prompt in enumerate(parsed.prompts)
    ]
    return msgspec.structs.replace(parsed, prompts=prompts, rid=rid)
