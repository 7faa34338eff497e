"""`Answer`: what has become of one request so far, in no dialect of HTTP. Pure.

Text, token ids, logprobs, why it ended, and what it cost. What stops it in the text is found here.
A formatter of each dialect (`coordinator/http/`) makes the response of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from coordinator.answers.detokenizer import Detokenizer, StopStrings
from coordinator.answers.request import Request
from coordinator.answers.stop_regex import StopRegexes
from coordinator.routing.route import Route
from coordinator.timelines.timeline import Timeline
from protocol.counters import RequestCounters
from protocol.prompt_logprobs import PromptLogprobs
from protocol.sampling import TokenLogprobs

ErrorKind = Literal[
    "bad_request", "too_busy", "unavailable", "timed_out", "client_left", "ends_nodes"
]
"""`bad_request`: no node can answer it. `too_busy`: later one may. `unavailable`: no node is left,
or several have failed. `timed_out`: it took too long. `client_left`: nobody wants the answer.
`ends_nodes`: nodes have died of it."""


@dataclass(frozen=True)
class AnswerError:
    """Why a request has no answer, or only the beginning of one. `message` is for the client to
    read."""

    kind: ErrorKind
    message: str
    retry_after_s: int = 1
    """When the same request may succeed, if it may."""


@dataclass(frozen=True)
class FinishReason:
    """How an answer ended: by a stop string or an end token, by its length, or without success."""

    kind: Literal["stop", "length", "abort"]
    matched: str | int | None = None
    """The stop string or pattern, or the id of the end token."""


class NewTokens(msgspec.Struct, frozen=True):
    """The tokens that a node has sent at once for an answer."""

    tokens: Sequence[int]
    logprobs: Sequence[TokenLogprobs]
    """The logprobs of each of `tokens`, if the request asks for them."""
    cached_tokens: int
    fetched_tokens: int
    transferred_pages: int
    prompt_logprobs: PromptLogprobs | None = None
    """With the first tokens of the first attempt that has some, if the request asks for them."""


class Answer:
    """The answer to one request. It grows with what nodes produce, over all attempts, until it
    ends."""

    def __init__(self, request: Request, request_id: str, now: float) -> None:
        self.request = request
        self.request_id = request_id
        """The cluster's name for it, which is never used twice."""
        self.rid = request.rid or request_id
        """The client's name for it."""
        self.output_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        """One for each of `output_ids`, if the request asks for them."""
        self.prompt_logprobs: PromptLogprobs | None = None
        """All that the request asks for; None until they came, or if it asks for none."""
        self.finish_reason: FinishReason | None = None
        """None while it grows."""
        self.error: AnswerError | None = None
        """Why it was aborted."""
        self.route: Route | None = None
        """Where its last attempt went; None until a token came from there."""
        self.num_attempts = 0
        self.cached_tokens = 0
        """Tokens of the prompt that needed no computing, as the first attempt found them."""
        self.fetched_tokens = 0
        """How many of `cached_tokens` came from another node."""
        self.transferred_pages = 0
        self.started_at = now
        self.timeline = Timeline(request.arrival, now)
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self._detokenizer = Detokenizer(request.pieces, request.tokens)
        self._wants_logprobs = request.sampling.wants_logprobs
        self._stops = StopStrings(request.stop_strings)
        self._patterns = StopRegexes(request.stop_patterns) if request.stop_patterns else None
        # Asked once: every token of every answer comes by.
        self._has_stop_strings = bool(self._stops)
        self._can_stop_in_text = self._has_stop_strings or self._patterns is not None
        self._end_token_ids = frozenset(request.end_token_ids)
        self._visible: int | None = None
        """Length of the text that is shown, when a stop or its beginning ends it; None: all of
        it."""

    @property
    def is_done(self) -> bool:
        """True once the answer has ended, with success or without."""
        return self.finish_reason is not None

    @property
    def text(self) -> str:
        """The text so far, without what may become a stop string."""
        text = self._detokenizer.text
        return text if self._visible is None else text[: self._visible]

    def grow(self, new: NewTokens, route: Route | None, num_attempts: int, now: float) -> bool:
        """Adds new tokens, which come of attempt number `num_attempts` along `route`; None for what
        another coordinator had asked for. Returns True if a stop string has ended the answer."""
        if self.first_token_at is None:
            self.first_token_at = now
            self.cached_tokens = new.cached_tokens
            self.fetched_tokens = new.fetched_tokens
        if self.prompt_logprobs is None:
            self.prompt_logprobs = new.prompt_logprobs
        self.route, self.num_attempts = route, num_attempts
        if new.transferred_pages > self.transferred_pages:
            self.transferred_pages = new.transferred_pages
        for i, token in enumerate(new.tokens):
            self.output_ids.append(token)
            if self._wants_logprobs:
                self.logprobs.append(new.logprobs[i])
            if token in self._end_token_ids and not self.request.keeps_stop:
                continue  # it is among the ids, and not in the text
            self._detokenizer.push(token)
            if self._can_stop_in_text and self._ends_with_stop(now):
                return True
        if self._has_stop_strings:
            self._visible = self._stops.safe_length(self._detokenizer.text)
        if self._patterns is not None:
            pattern_free = self._patterns.safe_length(self._detokenizer.text)
            visible = self._visible
            self._visible = pattern_free if visible is None else min(visible, pattern_free)
        return False

    def finish(self, kind: str, now: float) -> None:
        """Ends the answer for the reason that the node gave, "stop" or "length"."""
        self._detokenizer.finish()
        # The characters that were held back may complete a stop string.
        if self._ends_with_stop(now):
            return
        self.ended_at = now
        self._visible = None
        if kind == "stop":
            self.finish_reason = FinishReason("stop", self.output_ids[-1])
        else:
            self.finish_reason = FinishReason("length")

    def abort(
        self, kind: ErrorKind, message: str, num_attempts: int, now: float, retry_after_s: int = 1
    ) -> None:
        """Ends the answer without success."""
        self.ended_at = now
        self.num_attempts = max(self.num_attempts, num_attempts)
        self.error = AnswerError(kind, message, retry_after_s)
        self.finish_reason = FinishReason("abort")

    def abort_as_asked(self, now: float) -> None:
        """Ends the answer at its client's wish. It has no error, and keeps the text so far."""
        self._detokenizer.finish()
        self._visible = None
        self.ended_at = now
        self.finish_reason = FinishReason("abort")

    def counters(self) -> RequestCounters:
        """Returns what this answer, which has ended, adds to the totals."""
        was_aborted = self.finish_reason == FinishReason("abort") and self.error is None
        has_left = self.error is not None and self.error.kind == "client_left"
        return RequestCounters(
            requests=1,
            requests_hit=int(self.cached_tokens > 0),
            prompt_tokens=len(self.request.tokens),
            cached_tokens=self.cached_tokens,
            fetched_tokens=self.fetched_tokens,
            completion_tokens=len(self.output_ids),
            transferred_pages=self.transferred_pages,
            retries=max(0, self.num_attempts - 1),
            failed_requests=int(self.error is not None and not has_left),
            disconnected_requests=int(has_left),
            aborted_requests=int(was_aborted),
        )

    def _ends_with_stop(self, now: float) -> bool:
        """Looks for a stop string or pattern; ends the answer at the first one."""
        if not self._can_stop_in_text:
            return False
        text = self._detokenizer.text
        found = self._stops.find(text)
        matches = [(found[0], found[0] + len(found[1]), found[1])] if found is not None else []
        if self._patterns is not None and (match := self._patterns.find(text)) is not None:
            matches.append(match)
        if not matches:
            return False
        begin, end, stop = min(matches)
        self._visible = end if self.request.keeps_stop else begin
        self.finish_reason = FinishReason("stop", stop)
        self.ended_at = now
        return True
