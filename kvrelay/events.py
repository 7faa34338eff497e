"""The events of streams, read from their bytes, whatever brings these. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import msgspec

from kvrelay.answers import ChatUpdate, Generated, GeneratedMeta
from kvrelay.errors import ClientError, MalformedAnswer, error_of

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
END = b"[DONE]"
PREFIX = b"data:"
STATUSES = {"rate_limit_exceeded": 429, "service_unavailable": 503, "timeout": 504}
"""Status codes by the names that errors in OpenAI's form have for them."""
INVALID = "invalid_request_error"


class EventReader(Protocol[T_co]):
    """Makes updates of the bytes of a stream. Of one stream each: it keeps what came before."""

    is_finished: bool
    """True when the end of the stream was read."""

    def begin_again(self) -> None:
        """Is told that the stream broke off and goes on over another connection."""

    def feed(self, data: bytes) -> Iterator[T_co]:
        """Yields the updates that are whole with these bytes. Raises ClientError if one of them is
        an error."""


class _JsonEventReader(Generic[T]):
    """Reads events as updates of one type."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._rest = b""
        """The begin of a line whose end has not come."""
        self.is_finished = False

    def begin_again(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[T]:
        # Only a line feed ends a line: texts may have Unicode's other ends of lines.
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            update = self._read(line)
            if update is not None:
                yield update

    def _read(self, line: bytes) -> T | None:
        """Returns the update in a line; None if there is none."""
        if not line.startswith(PREFIX):  # an empty line, a comment, or a field such as `event:`
            return None
        payload = line.removeprefix(PREFIX).strip()
        if payload == END:
            self.is_finished = True
            return None
        if error := _error_in(payload):
            raise error
        try:
            return self._decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise MalformedAnswer(f"an event of the stream is no update: {problem}") from problem


class ChatEventReader(_JsonEventReader[ChatUpdate]):
    """The stream of a chat: each update has what is new."""

    def __init__(self) -> None:
        super().__init__(ChatUpdate)


class GeneratedEventReader(_JsonEventReader[Generated]):
    """The stream of /generate: each update has all text and ids so far.

    A server with --stream-output sends only what is new; it is put together here.
    """

    def __init__(self) -> None:
        super().__init__(Generated)
        self._last = Generated(text="")

    def _read(self, line: bytes) -> Generated | None:
        update = super()._read(line)
        if update is None:
            return None
        if len(update.output_ids) < update.meta_info.completion_tokens:
            update = _joined(self._last, update)
        self._last = update
        return update


def _joined(last: Generated, update: Generated) -> Generated:
    """Returns all of an answer, of which `update` has what came after `last`."""
    meta = update.meta_info
    lists = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")
    longer = {
        name: (getattr(last.meta_info, name) or ()) + new
        for name in lists
        if (new := getattr(meta, name)) is not None
    }
    joined: GeneratedMeta = msgspec.structs.replace(meta, **longer)
    return msgspec.structs.replace(
        update,
        text=last.text + update.text,
        output_ids=last.output_ids + update.output_ids,
        meta_info=joined,
    )


class _EventError(msgspec.Struct):
    message: str = "the stream ended with an error"
    code: int | str | None = None
    """A status code, or in OpenAI's form a name."""
    type: str | None = None


class _EventWithError(msgspec.Struct):
    error: _EventError | None = None


def _error_in(payload: bytes) -> ClientError | None:
    """Returns the error that an event carries, if it does."""
    if b'"error"' not in payload:
        return None
    try:
        error = msgspec.json.decode(payload, type=_EventWithError).error
    except msgspec.DecodeError:
        return None  # whoever reads the event as an update says what is wrong
    if error is None:
        return None
    return error_of(_status_of(error), payload)


def _status_of(error: _EventError) -> int:
    """Returns the status code that an error stands for: the head of a stream had another one."""
    if isinstance(error.code, int):
        return error.code
    return STATUSES.get(error.code or "", 400 if error.type == INVALID else 500)
