"""The events of streams, read line by line, whatever brings the lines. Pure."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import msgspec

from kvrelay.answers import ChatUpdate, Generated, GeneratedMeta
from kvrelay.errors import ClientError, MalformedAnswer, error_of

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
END = "[DONE]"
PREFIX = "data:"


class EventReader(Protocol[T_co]):
    """Makes updates of the lines of a stream. Of one stream each: it may keep what came before."""

    is_finished: bool
    """True when the end of the stream was read."""

    def read(self, line: str) -> T_co | None:
        """Returns the update in a line; None if there is none. Raises ClientError if the line has
        an error."""


class _JsonEventReader(Generic[T]):
    """Reads lines as updates of one type."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self.is_finished = False

    def read(self, line: str) -> T | None:
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
        except msgspec.DecodeError as problem:
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

    def read(self, line: str) -> Generated | None:
        update = super().read(line)
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


class _EventWithError(msgspec.Struct):
    error: _EventError | None = None


def _error_in(payload: str) -> ClientError | None:
    """Returns the error that an event carries, if it does."""
    if '"error"' not in payload:
        return None
    try:
        error = msgspec.json.decode(payload, type=_EventWithError).error
    except msgspec.DecodeError:
        return None  # whoever reads the event as an update says what is wrong
    if error is None:
        return None
    code = error.code if isinstance(error.code, int) else 500
    return error_of(code, payload.encode())
