"""A stream of /generate that goes on at this coordinator, as the one that had it has died."""

from __future__ import annotations

from starlette.types import Scope

from coordinator.answers.request import Request
from coordinator.http.errors import BadRequest
from coordinator.http.native.schema import ParsedBody
from coordinator.leaving.resume_token import InvalidResumeToken, ResumeToken
from coordinator.mailbox import Mailbox
from coordinator.service import Service

MAX_ID_DIGITS = 9


async def resume(service: Service, body: ParsedBody, request: Request) -> Mailbox:
    """Goes on with the answer to `request`, which is what `body` asks for. Raises BadRequest and
    RequestRefused."""
    if not body.is_resumable:
        raise BadRequest(
            "resume_token: only a stream of one answer, outside sessions, can be resumed: give one "
            "prompt, n 1 and stream true, as the first time",
            "resume_token",
        )
    if not request.rid:
        raise BadRequest(
            "resume_token: give the rid of the request too; meta_info.id of its events has it",
            "rid",
        )
    try:
        token = ResumeToken.parse(body.resume_token or "")
        resumed = token.resumed(request)
    except InvalidResumeToken as error:
        raise BadRequest(f"resume_token: {error}", "resume_token") from error
    return service.submit(resumed, await service.answered_before(token))


def last_event_id(scope: Scope) -> int:
    """Returns how many tokens the client has already, by the header Last-Event-ID; 0 without it.
    Raises BadRequest."""
    for name, value in scope["headers"]:
        if name == b"last-event-id" and value:
            if not value.isdigit() or len(value) > MAX_ID_DIGITS:
                raise BadRequest(
                    "Last-Event-ID is the id of an event, the number of tokens that it has shown"
                )
            return int(value)
    return 0
