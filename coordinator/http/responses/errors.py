"""Errors in the form of OpenAI's responses: as of all its endpoints, but for events. Pure."""

from __future__ import annotations

import msgspec

from coordinator.http.errors import ErrorForm
from coordinator.http.openai.errors import KINDS, SERVER_ERROR, openai_error


def _last_events(status_code: int, message: str) -> bytes:
    code = KINDS.get(status_code, SERVER_ERROR)[1]
    error = {"type": "error", "code": code, "message": message, "param": None}
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(error)


RESPONSES_ERRORS = ErrorForm(openai_error, _last_events)
