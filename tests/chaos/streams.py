"""`Streams`: clients that ask one question after the other through one URL, and what they saw."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from kvrelay.async_client import AsyncClient
from kvrelay.errors import ClientError
from tests.chaos.questions import Kind, Question, Tokens, ask

DEADLINE_S = 60.0
"""A request that has no end by then counts as hung."""
SALTS = ("", "a", "b", "c")
"""Of one salt, prompts share pages."""


@dataclass(frozen=True)
class Seen:
    """What a client saw of one request. Times are seconds after the first stream."""

    kind: Kind
    question: int
    began_s: float
    ended_s: float
    first_token_s: float | None
    """How long it waited for its first token; None if none came in a stream."""
    worst_gap_s: float
    """The longest time between two updates of its stream."""
    worst_gap_at_s: float
    attempts: int
    num_retries: int
    """How often the client sent it again."""
    num_taken_over: int
    """How often another coordinator went on with it."""
    tokens: Tokens | None
    """None if it failed."""
    error: str = ""
    is_hung: bool = False


@dataclass
class _Progress:
    """The updates of one request so far."""

    first_at: float | None = None
    last_at: dict[str, float] = field(default_factory=dict)
    """By rid."""
    num_tokens: dict[str, int] = field(default_factory=dict)
    worst: tuple[float, float] = (0.0, 0.0)
    """The longest gap, and when it ended."""
    attempts: int = 1

    def saw(self, rid: str, num_tokens: int, attempts: int) -> None:
        now = time.monotonic()
        self.first_at = self.first_at or now
        self.attempts = max(self.attempts, attempts)
        assert num_tokens >= self.num_tokens.get(rid, 0), "tokens were taken back"
        self.num_tokens[rid] = num_tokens
        self.worst = max(self.worst, (now - self.last_at.get(rid, now), now))
        self.last_at[rid] = now


class CountedTransport(httpx.AsyncBaseTransport):
    """Counts what one client sends. All of them share the connections of `inner`."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.num_sent: dict[str, int] = {}
        """Requests by path."""
        self.num_taken_over = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.num_sent[path] = self.num_sent.get(path, 0) + 1
        response = await self._inner.handle_async_request(request)
        self.num_taken_over += "last-event-id" in request.headers and response.status_code == 200
        return response


async def ask_each(url: str, questions: Sequence[Question], at_once: int = 8) -> tuple[Tokens, ...]:
    """Returns the tokens of each question. Raises ClientError."""
    places = asyncio.Semaphore(at_once)

    async def answer(question: Question) -> Tokens:
        async with places:
            return await ask(client, question, "", lambda *_: None)

    async with AsyncClient(url) as client:
        return tuple(await asyncio.gather(*map(answer, questions)))


async def keep_up(
    url: str,
    questions: Sequence[Question],
    num_streams: int,
    seconds: float,
    pause_s: float,
    seed: int,
) -> list[Seen]:
    """Keeps up `num_streams` clients, each of which asks again after a pause of about `pause_s`,
    until `seconds` are over. Returns what they saw when all have ended."""
    began = time.monotonic()
    inner = httpx.AsyncHTTPTransport(verify=False, limits=httpx.Limits(max_connections=None))
    seen: list[Seen] = []

    async def one_client(number: int) -> None:
        chance = random.Random(f"{seed}/{number}")
        await asyncio.sleep(chance.random() * pause_s)
        while time.monotonic() - began < seconds:
            which = chance.randrange(len(questions))
            seen.append(
                await _ask_once(inner, url, which, questions[which], chance.choice(SALTS), began)
            )
            await asyncio.sleep(pause_s * (0.5 + chance.random()))

    await asyncio.gather(*map(one_client, range(num_streams)))
    await inner.aclose()
    return seen


async def _ask_once(
    inner: httpx.AsyncBaseTransport,
    url: str,
    which: int,
    question: Question,
    salt: str,
    began: float,
) -> Seen:
    progress, transport = _Progress(), CountedTransport(inner)
    client = AsyncClient(url, transport=transport, timeout_s=DEADLINE_S)
    asked_at = time.monotonic()
    tokens, error, is_hung = None, "", False
    try:
        tokens = await asyncio.wait_for(ask(client, question, salt, progress.saw), DEADLINE_S)
    except ClientError as failure:
        error = f"{type(failure).__name__} {failure.status or ''}: {failure}"
    except asyncio.TimeoutError:
        is_hung, error = True, f"no end within {DEADLINE_S:g} s"
    now = time.monotonic()
    usual = 2 if question.kind == "session" else 1
    return Seen(
        question.kind,
        which,
        asked_at - began,
        now - began,
        progress.first_at - asked_at if progress.first_at else None,
        progress.worst[0],
        progress.worst[1] - began if progress.worst[1] else 0.0,
        progress.attempts,
        max(0, transport.num_sent.get("/generate", 0) - usual),
        transport.num_taken_over,
        tokens,
        error,
        is_hung,
    )


def first_difference(one: Tokens, other: Tokens) -> int:
    """Returns the first index at which they differ; their common length if none does."""
    pairs = enumerate(itertools.zip_longest(one, other))
    return next((at for at, (a, b) in pairs if a != b), len(one))


def wrong(seen: Sequence[Seen], expected: Sequence[Tokens]) -> Mapping[int, tuple[Seen, int]]:
    """Returns those whose tokens are not the expected ones, with the first index that differs."""
    return {
        number: (one, first_difference(one.tokens, expected[one.question]))
        for number, one in enumerate(seen)
        if one.tokens is not None and one.tokens != expected[one.question]
    }
