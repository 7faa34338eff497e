"""Which path has its errors in which dialect. Pure."""

from __future__ import annotations

from coordinator.http.anthropic.errors import ANTHROPIC_ERRORS
from coordinator.http.errors import NATIVE_ERRORS, ErrorForm
from coordinator.http.openai.errors import OPENAI_ERRORS


def error_form_of(path: str) -> ErrorForm:
    """Returns the form of errors of a path, whether there is an endpoint or not."""
    if path.startswith("/v1/messages"):
        return ANTHROPIC_ERRORS
    return OPENAI_ERRORS if path.startswith("/v1/") else NATIVE_ERRORS
