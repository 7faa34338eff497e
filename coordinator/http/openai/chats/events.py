"""`ChatEvents`: the events of one answer's stream in OpenAI's form.

A stream has an event for nearly every token, so all that events have in common is encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from coordinator.answers.token_pieces import TokenPieces
from coordinator.conversation.message import (
    MessageDelta,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallBegun,
    ToolCallBroken,
)
from coordinator.http.chat.answer import ChatInProgress
from coordinator.http.openai.chats.body import ParsedChat
from coordinator.http.openai.chats.logprobs import ChatLogprobs
from coordinator.http.openai.heads import ResponseHead, usage_of, why_it_stopped
from coordinator.http.wire.events import event_of

CHUNK = "chat.completion.chunk"


class ChatEvents:
    """Makes the events of one answer."""

    def __init__(
        self, head: ResponseHead, parsed: ParsedChat, one: ChatInProgress, pieces: TokenPieces
    ) -> None:
        self._one = one
        self._parsed = parsed
        self._logprobs = None
        if parsed.request.logprobs is not None:
            self._logprobs = ChatLogprobs(one.answer, pieces)
        fields = msgspec.json.encode(head.fields(CHUNK))[:-1]
        self._begin = b'data: %b,"choices":[{"index":%d,"delta":' % (fields, one.index)
        options = parsed.stream_options
        self._has_usage = bool(options.continuous_usage_stats)
        self._usage = b',"usage":null' if options.include_usage and not self._has_usage else b""
        self._is_plain = self._logprobs is None and not parsed.with_token_ids
        self._plain_end = b"" if self._has_usage else self._end(b"null", b"null", b"")
        """The end of an event that has a delta and nothing else; b"" if it differs each time."""
        self._has_begun = False
        self._num_ids = 0
        """Token ids that the events so far have shown."""
        self._held_thoughts: list[str] = []
        """Those that wait for the rest of them."""

    def next(self) -> bytes:
        """Returns the events with the parts of the message that are new; b"" if there is nothing
        to say. The last parts come with the finish reason."""
        deltas = self._one.take()
        finish = self._one.finish
        events = []
        if not self._has_begun:
            self._has_begun = True
            events.append(self._first())
        if self._is_plain:
            end = self._plain_end or self._end(b"null", b"null", b"")
            events += [self._begin + self._delta(d) + end for d in self._shown(deltas)]
        else:
            for delta in self._shown(deltas):
                logprobs, ids = self._about_tokens()
                events.append(self._begin + self._delta(delta) + self._end(logprobs, b"null", ids))
        if finish is not None:
            logprobs, ids = self._about_tokens()
            more = b"," + msgspec.json.encode(why_it_stopped(self._one.answer))[1:-1] + ids
            reason = msgspec.json.encode(finish)
            events.append(self._begin + b"{}" + self._end(logprobs, reason, more))
        return b"".join(events)

    def _first(self) -> bytes:
        event = self._begin + b'{"role":"assistant","content":""}'
        if not self._parsed.with_token_ids:
            return event + self._end(b"null", b"null", b"")
        prompt = msgspec.json.encode(self._one.answer.request.tokens)
        end = self._end(b"null", b"null", b"", b',"prompt_token_ids":' + prompt)
        return event + end

    def _shown(self, deltas: Sequence[MessageDelta]) -> Sequence[MessageDelta]:
        """Returns the parts that are to be shown now. Thoughts come as the client wants them."""
        shown: list[MessageDelta] = []
        for delta in deltas:
            if isinstance(delta, ToolCallBroken):
                continue  # its beginning has been sent
            if not isinstance(delta, ReasoningDelta):
                shown += [*self._released(), delta]
            elif self._parsed.shows_reasoning and self._parsed.streams_reasoning:
                shown.append(delta)
            elif self._parsed.shows_reasoning:
                self._held_thoughts.append(delta.text)
        return shown + self._released() if self._one.finish is not None else shown

    def _released(self) -> list[MessageDelta]:
        thoughts, self._held_thoughts = "".join(self._held_thoughts), []
        return [ReasoningDelta(thoughts)] if thoughts else []

    def _delta(self, delta: MessageDelta) -> bytes:
        if isinstance(delta, TextDelta):
            return b'{"content":%b}' % msgspec.json.encode(delta.text)
        if isinstance(delta, ReasoningDelta):
            return b'{"reasoning_content":%b}' % msgspec.json.encode(delta.text)
        assert isinstance(delta, ToolCallBegun | ToolArgumentsDelta)
        call: dict[str, Any] = {"index": delta.index}
        if isinstance(delta, ToolCallBegun):
            call |= {"id": self._one.call_id(delta.index), "type": "function"}
            call["function"] = {"name": delta.name, "arguments": ""}
        else:
            call["function"] = {"arguments": delta.text}
        return b'{"tool_calls":[%b]}' % msgspec.json.encode(call)

    def _about_tokens(self) -> tuple[bytes, bytes]:
        """Returns the logprobs and ids of the tokens since the event before, as they stand in a
        choice."""
        logprobs, ids = b"null", b""
        if self._logprobs is not None:
            logprobs = msgspec.json.encode(self._logprobs.take())
        if self._parsed.with_token_ids:
            new = self._one.answer.output_ids[self._num_ids :]
            self._num_ids += len(new)
            ids = b',"token_ids":' + msgspec.json.encode(new)
        return logprobs, ids

    def _end(self, logprobs: bytes, finish: bytes, more: bytes, behind: bytes = b"") -> bytes:
        """Returns an event from behind its delta on, with `more` fields of its choice and some
        `behind` the choices."""
        usage = self._usage
        if self._has_usage:
            usage = b',"usage":' + msgspec.json.encode(usage_of([self._one.usage]))
        form = b',"logprobs":%b,"finish_reason":%b%b}]%b%b}\n\n'
        return form % (logprobs, finish, more, behind, usage)


def usage_event(head: ResponseHead, answers: Sequence[ChatInProgress]) -> bytes:
    """Returns the event with the usage of all answers, which has no choices."""
    usage = usage_of([one.usage for one in answers])
    return event_of(head.fields(CHUNK) | {"choices": [], "usage": usage})
