"""Load in an open loop: requests are sent when they are due, however many are unanswered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from kvrelay.bench.http_post import Target, post

Body = Callable[[random.Random, str], bytes]
"""Makes the body of a request of a tenant."""


class _Event(msgspec.Struct):
    output_ids: list[int] = []
    error: dict[str, object] | None = None


@dataclass
class Sent:
    """One request and what became of it. Times are seconds since the load began."""

    tenant: str
    at: float
    first_token_at: float | None = None
    ended_at: float | None = None
    status: int = 0
    body: bytes = b""
    output_ids: list[int] = field(default_factory=list)
    failed: bool = False
    """An error came within the stream, or the connection broke."""

    @property
    def first_token_s(self) -> float | None:
        """Seconds from the request to its first token; None if none came."""
        return None if self.first_token_at is None else self.first_token_at - self.at

    def is_good(self, bound_s: float, right: Sequence[int] | None) -> bool:
        """Returns True if the first token came within the bound, and all tokens were right; without
        `right` that is not looked at."""
        first_s = self.first_token_s
        in_time = first_s is not None and first_s <= bound_s
        is_whole = self.status == 200 and not self.failed
        return in_time and is_whole and (right is None or self.output_ids == list(right))


@dataclass(frozen=True)
class Stream:
    """A Poisson process of one tenant's requests, from `begins` to `ends`."""

    tenant: str
    per_s: float
    begins: float
    ends: float
    seed: int

    def times(self) -> list[float]:
        """Returns when its requests are due; the same for the same seed."""
        chance = random.Random(f"{self.tenant} {self.seed}")
        times: list[float] = []
        at = self.begins + chance.expovariate(self.per_s)
        while at < self.ends:
            times.append(at)
            at += chance.expovariate(self.per_s)
        return times


async def play(
    url: str, streams: Sequence[Stream], body: Body, wait_s: float, chance: random.Random
) -> list[Sent]:
    """Sends all requests of the streams, and waits at most `wait_s` longer than they last. Who has
    no answer by then leaves. `chance` makes the prompts."""
    target = Target.parse(url, "")
    due = sorted((at, stream.tenant) for stream in streams for at in stream.times())
    began = time.monotonic()
    sent: list[Sent] = []
    tasks: list[asyncio.Task[None]] = []
    for at, tenant in due:
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        one = Sent(tenant, time.monotonic() - began, body=body(chance, tenant))
        sent.append(one)
        tasks.append(asyncio.create_task(_ask(target, one, began)))
    if tasks:
        await asyncio.wait(tasks, timeout=wait_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return sent


async def busiest(
    url: str, num_clients: int, seconds: float, body: Body, chance: random.Random
) -> float:
    """Returns how many requests are answered per second when `num_clients` clients ask again as
    soon as they have an answer."""
    target = Target.parse(url, "")
    began = time.monotonic()
    ended: list[float] = []

    async def ask_again() -> None:
        while time.monotonic() < began + seconds:
            one = Sent("", 0.0, body=body(chance, ""))
            await _ask(target, one, began)
            if one.status == 200 and one.ended_at is not None:
                ended.append(one.ended_at)

    await asyncio.gather(*(ask_again() for _ in range(num_clients)))
    # Not the beginning, when the queue fills, nor the end, when it empties.
    counted = [at for at in ended if 0.2 * seconds <= at <= seconds]
    return len(counted) / (0.8 * seconds)


async def share_of_same_answers(url: str, sent: Sequence[Sent]) -> float:
    """Returns for how many of the requests the same tokens come when they are asked again, one at a
    time."""
    target = Target.parse(url, "")
    again = [Sent(one.tenant, 0.0, body=one.body) for one in sent]
    for one in again:
        await _ask(target, one, time.monotonic())
    pairs = zip(sent, again, strict=True)
    return sum(one.output_ids == other.output_ids for one, other in pairs) / len(sent)


async def _ask(target: Target, one: Sent, began: float) -> None:
    def on_event(raw: bytes) -> None:
        event = msgspec.json.decode(raw, type=_Event)
        if event.error is not None:
            one.failed = True
            return
        if event.output_ids and one.first_token_at is None:
            one.first_token_at = time.monotonic() - began
        one.output_ids = event.output_ids

    try:
        one.status, _ = await post(target, "/generate", one.body, on_event)
        one.ended_at = time.monotonic() - began
    except OSError:
        one.failed = True
