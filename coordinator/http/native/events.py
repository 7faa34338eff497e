"""`StreamEvents`: the events of one answer's stream, in SGLang's dialect. Pure.

A stream has an event for nearly every token, so an event encodes only what is new in it: nearly all
of meta_info stays the same, and texts and ids that only grow are kept as the bytes they had.
"""

from __future__ import annotations

from typing import Any

from msgspec.json import encode

from coordinator.http.native.sglang import SGLangFormatter, stream_error
from coordinator.http.wire.events import event_of

CHANGES_OFTEN = ("completion_tokens", "e2e_latency")
"""What differs in meta_info from event to event."""
ONE_PER_TOKEN = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")
"""The lists in meta_info with an entry for each token of the answer."""


class StreamEvents:
    """Makes the events of one answer. Each has all text and ids so far, or with `only_new` those
    that the one before did not have."""

    def __init__(
        self,
        formatter: SGLangFormatter,
        only_new: bool,
        extra: dict[str, Any] | None = None,
        first_meta: dict[str, Any] | None = None,
    ) -> None:
        """`extra` are fields that every event but an error has besides; `first_meta` are those that
        meta_info of the first event has."""
        self._formatter = formatter
        self._answer = formatter.answer
        self._only_new = only_new
        self._has_long_fields = formatter.has_long_fields
        self._extra = extra or {}
        self._first_meta = first_meta or {}
        self._end = b'},"error":null%b}\n\n' % _more(self._extra)
        self._text = bytearray()
        """The text so far, as JSON without its quotes; always empty with `only_new`."""
        self._ids = bytearray()
        """The ids so far, each with a comma behind it; always empty with `only_new`."""
        self._num_chars = 0
        self.num_tokens = 0
        """How many tokens the events so far have shown."""
        self._steady: bytes = b""
        """The part of meta_info that changes seldom, as JSON without its braces."""
        self._steady_key: tuple[object, ...] = ()

    def skip(self, num_tokens: int, num_chars: int) -> None:
        """Takes so many tokens and characters for shown: the client has them from elsewhere. It
        matters with `only_new` alone."""
        if self._only_new:
            self.num_tokens, self._num_chars = num_tokens, num_chars

    def next(self, now: float) -> bytes:
        """Returns an event with the answer as it stands."""
        answer = self._answer
        if answer.error is not None:
            return event_of(stream_error(answer.error) | self._extra)
        if answer.is_done or self._has_long_fields:
            return event_of(self._whole(now) | self._extra)
        text, ids = answer.text, answer.output_ids
        num_tokens = len(ids)
        new_text = encode(text[self._num_chars :])[1:-1]
        new_ids = b"".join([b"%d," % ids[i] for i in range(self.num_tokens, num_tokens)])
        self._num_chars, self.num_tokens = len(text), num_tokens
        if not self._only_new:
            self._text += new_text
            self._ids += new_ids
            new_text, new_ids = self._text, self._ids  # type: ignore[assignment]
        return b'data: {"text":"%b","output_ids":[%b],"meta_info":{%b%d,"e2e_latency":%.6f%b' % (
            new_text,
            new_ids[:-1],
            self._steady_part(),
            num_tokens,
            now - answer.started_at,
            self._end,
        )

    def _whole(self, now: float) -> dict[str, Any]:
        """Returns an event as an object that is made anew."""
        result = self._formatter.result(now)
        first_meta, self._first_meta = self._first_meta, {}
        result["meta_info"] |= first_meta
        num_chars, num_tokens = self._num_chars, self.num_tokens
        self._num_chars, self.num_tokens = len(result["text"]), len(result["output_ids"])
        if self._only_new:
            result["text"] = result["text"][num_chars:]
            result["output_ids"] = result["output_ids"][num_tokens:]
            meta = result["meta_info"]
            for name in meta.keys() & ONE_PER_TOKEN:
                meta[name] = meta[name][num_tokens:]
        return result

    def _steady_part(self) -> bytes:
        """Returns the beginning of meta_info, up to the value of completion_tokens."""
        answer = self._answer
        # A route is another object in each attempt.
        key = (id(answer.route), answer.num_attempts, answer.transferred_pages)
        if key != self._steady_key:
            self._steady_key = key
            meta = self._formatter.meta(0.0)
            steady = {name: value for name, value in meta.items() if name not in CHANGES_OFTEN}
            self._steady = encode(steady)[1:-1] + b',"completion_tokens":'
        if not self._first_meta:
            return self._steady
        first_meta, self._first_meta = self._first_meta, {}
        return encode(first_meta)[1:-1] + b"," + self._steady


def _more(fields: dict[str, Any]) -> bytes:
    """Returns fields as they stand at the end of a JSON object."""
    return b"," + encode(fields)[1:-1] if fields else b""
