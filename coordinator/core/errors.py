"""Why a request is refused before anything is kept of it. Pure."""

from __future__ import annotations


class RequestRefused(Exception):
    """The coordinator does not take this request; the message is for the client to read."""


class DuplicateRequest(RequestRefused):
    """A request of the same name is not answered yet."""


class EndsNodes(RequestRefused):
    """Nodes have died of a request of the same content."""


class TooBusy(RequestRefused):
    """Too many requests are unfinished, or it would be this one's turn too late."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        """`retry_after_s` is when there is thought to be a place for it."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(RequestRefused):
    """No node can serve it now."""
