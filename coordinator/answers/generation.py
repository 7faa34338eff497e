"""One running answer as an HTTP handler sees it: a mailbox, its text, and its result object."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from coordinator.answers.detokenizer import Detokenizer, StopStrings
from coordinator.answers.logprobs import AnswerLogprobs
from coordinator.answers.tokenizer import Tokenizer
from coordinator.core.totals import Counts
from coordinator.core.tracker import Ended, Produced, Request
from coordinator.http.schema import Prompt
from coordinator.routing.router import Route


@dataclass(frozen=True)
class Abort:
    """Why a request has no answer."""

    message: str
    status_code: int


CLIENT_LEFT = 499
"""Nobody reads it; it is what access logs of proxies show."""


@dataclass(eq=False)
class Generation:
    """Collects what the tracker delivers. Bounded by the answer's own length.

    One handler waits for it, with `changed` or `finished`. `finish_reason` is SGLang's object,
    None while it runs.
    """

    request_id: str
    """The cluster's name of it; `rid` is the client's."""
    rid: str
    prompt_tokens: int
    detokenizer: Detokenizer
    stops: StopStrings
    end_token_ids: frozenset[int]
    no_stop_trim: bool
    started: float
    logprobs: AnswerLogprobs | None = None
    """If the client asks for them."""
    output_ids: list[int] = field(default_factory=list)
    finish_reason: dict[str, Any] | None = None
    error: Abort | None = None
    route: Route | None = None
    attempts: int = 0
    cached_tokens: int = 0
    fetched_tokens: int = 0
    transferred_pages: int = 0
    first_token_at: float | None = None
    ended_at: float | None = None
    _has_news: bool = False
    _waiter: asyncio.Future[None] | None = None
    _waits_for_end: bool = False
    _visible: int | None = None
    """Length of the text that is shown, when a stop string or its beginning ends it."""

    @classmethod
    def of(
        cls, request: Request, rid: str, prompt: Prompt, tokenizer: Tokenizer, now: float
    ) -> Generation:
        """The answer to a request that starts now."""
        sampling, asked = prompt.sampling, prompt.logprobs
        decode = partial(tokenizer.decode, skip_special_tokens=sampling.skip_special_tokens)
        return cls(
            request_id=request.request_id,
            rid=rid,
            prompt_tokens=len(request.tokens),
            detokenizer=Detokenizer(decode, request.tokens),
            stops=StopStrings(sampling.stops),
            end_token_ids=frozenset(request.end_token_ids),
            no_stop_trim=sampling.no_stop_trim,
            started=now,
            logprobs=None
            if asked is None
            else AnswerLogprobs(asked, partial(tokenizer.decode, skip_special_tokens=False)),
        )

    @property
    def done(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def text(self) -> str:
        text = self.detokenizer.text
        return text if self._visible is None else text[: self._visible]

    async def changed(self, timeout_s: float) -> None:
        """Waits for news; raises TimeoutError."""
        if not self._has_news:
            await self._wait(timeout_s, for_end=False)
        self._has_news = False

    async def finished(self, timeout_s: float) -> None:
        """Waits until it is done; raises TimeoutError. Tokens on the way wake nobody."""
        if not self.done:
            await self._wait(timeout_s, for_end=True)

    def abandon(self) -> None:
        """The client has left: ends the wait of its handler."""
        if not self.done:
            self.error = Abort("the client has left", CLIENT_LEFT)
            self._wake()

    def produced(self, event: Produced, now: float) -> bool:
        """Takes new tokens; True if a stop string ended the answer, so it is to be cancelled."""
        stopped = self._take(event, now)
        self._wake()
        return stopped

    def ended(self, event: Ended, now: float) -> None:
        self._end(event, now)
        self._wake()

    def _take(self, event: Produced, now: float) -> bool:
        if self.first_token_at is None:
            self.first_token_at = now
            self.cached_tokens = event.cached_tokens
            self.fetched_tokens = event.fetched_tokens
        self.route, self.attempts = event.route, event.attempt
        self.transferred_pages = max(self.transferred_pages, event.transferred_pages)
        for i, token in enumerate(event.tokens):
            self.output_ids.append(token)
            if self.logprobs is not None:
                self.logprobs.push(token, event.logprobs[i])
            if token in self.end_token_ids and not self.no_stop_trim:
                continue  # as SGLang: among the ids, not in the text
            self.detokenizer.push(token)
            if self._stopped(now):
                return True
        self._visible = self.stops.safe_length(self.detokenizer.text)
        return False

    def _end(self, event: Ended, now: float) -> None:
        self.ended_at = now
        self.attempts = max(self.attempts, event.attempts)
        if event.finish == "error":
            self.error = Abort(event.message, event.status_code)
            return
        self.detokenizer.finish()
        if self._stopped(now):
            return
        self._visible = None
        if event.finish == "stop":
            self.finish_reason = {"type": "stop", "matched": self.output_ids[-1]}
        else:
            self.finish_reason = {"type": "length", "length": len(self.output_ids)}

    def counts(self) -> Counts:
        """What it adds to the totals, when it has ended."""
        return Counts(
            requests=1,
            requests_hit=self.cached_tokens > 0,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            fetched_tokens=self.fetched_tokens,
            completion_tokens=len(self.output_ids),
            transferred_pages=self.transferred_pages,
            retries=max(0, self.attempts - 1),
            failed=self.error is not None,
        )

    def result(self, now: float) -> dict[str, Any]:
        """The response object of /generate, at any moment of the answer."""
        ended = self.ended_at if self.ended_at is not None else now
        meta: dict[str, Any] = {
            "id": self.rid,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.output_ids),
            "cached_tokens": self.cached_tokens,
            "cached_tokens_details": {"device": self.cached_tokens, "host": 0},
            "e2e_latency": ended - self.started,
            "weight_version": "default",
            "ttft": self.first_token_at - self.started if self.first_token_at else None,
            "attempts": self.attempts,
            "fetched_tokens": self.fetched_tokens,
            "transferred_pages": self.transferred_pages,
            "prefill_node": None,
            "decode_node": None,
            "route_reason": None,
            "route_runner_up": None,
            "fetched_from": None,
        }
        if self.route is not None:
            meta["prefill_node"] = self.route.prefill.name if self.route.prefill else None
            meta["decode_node"] = self.route.decode.name
            meta["route_reason"] = self.route.reason
            meta["route_runner_up"] = self.route.runner_up
            fetched_from = self.route.fetch_from
            meta["fetched_from"] = fetched_from.name if fetched_from else None
        if self.logprobs is not None:
            meta |= self.logprobs.meta()
        return {
            "text": self.text,
            "output_ids": list(self.output_ids),
            "meta_info": meta,
            "error": None,
        }

    def _stopped(self, now: float) -> bool:
        """Looks for a stop string; ends the answer at the first one."""
        found = self.stops.find(self.detokenizer.text)
        if found is None:
            return False
        position, stop = found
        self._visible = position + (len(stop) if self.no_stop_trim else 0)
        self.finish_reason = {"type": "stop", "matched": stop}
        self.ended_at = now
        return True

    async def _wait(self, timeout_s: float, for_end: bool) -> None:
        """A future and a timer: a tenth of what a task and an event cost."""
        assert self._waiter is None
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        self._waits_for_end = for_end
        timer = loop.call_later(timeout_s, _time_out, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        self._has_news = True
        waiter = self._waiter
        if waiter is not None and not waiter.done() and (self.done or not self._waits_for_end):
            waiter.set_result(None)


def _time_out(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(asyncio.TimeoutError())
