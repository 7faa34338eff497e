"""An open load of prompts that share their beginnings, and what its clients see."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from kvrelay.async_client import AsyncClient
from kvrelay.errors import ClientError
from kvrelay.retries import RetryPolicy

NUM_PREFIXES = 24
PREFIX_TOKENS, OWN_TOKENS, NEW_TOKENS = 512, 48, 16
SHARE_OF_PREFIX = PREFIX_TOKENS / (PREFIX_TOKENS + OWN_TOKENS)
"""The hit ratio of a cluster that computes no prefix twice."""
FIRST_ID, LAST_ID = 8, 2000
"""Token ids of the embedded model that are ordinary words."""
PATIENCE = RetryPolicy(max_attempts=20, max_wait_s=1.0)
"""A client whose coordinator is gone asks again, every second at last, for some 15 seconds."""


@dataclass(frozen=True)
class Seen:
    """What a client saw of one request. `first_token_s` is None if it failed."""

    at_s: float
    """When it was sent first, in seconds after the first request."""
    first_token_s: float | None
    """From then to its first token, with all repetitions."""
    prompt_tokens: int
    cached_tokens: int


def prefixes_of(seed: int) -> list[list[int]]:
    """Returns the beginnings that prompts share."""
    chance = random.Random(seed)
    return [_random_ids(chance, PREFIX_TOKENS) for _ in range(NUM_PREFIXES)]


async def ask_for(url: str, seconds: float, rate: float, seed: int) -> list[Seen]:
    """Sends `rate` requests a second at random times (Poisson), whether or not others have ended.
    Returns what was seen of each when all have ended."""
    chance = random.Random(seed)
    prefixes = prefixes_of(seed)
    began = time.monotonic()
    async with AsyncClient(url, retry=PATIENCE) as client:
        tasks = []
        at_s = chance.expovariate(rate)
        while at_s < seconds:
            await asyncio.sleep(max(0.0, began + at_s - time.monotonic()))
            prompt = chance.choice(prefixes) + _random_ids(chance, OWN_TOKENS)
            tasks.append(asyncio.create_task(_ask(client, prompt, began)))
            at_s += chance.expovariate(rate)
        return list(await asyncio.gather(*tasks))


async def _ask(client: AsyncClient, prompt: list[int], began: float) -> Seen:
    sent = time.monotonic()
    first_token_s: float | None = None
    cached_tokens = 0
    try:
        async for answer in client.stream(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True):
            first_token_s = first_token_s or time.monotonic() - sent
            cached_tokens = answer.meta_info.cached_tokens
    except ClientError:
        return Seen(sent - began, None, len(prompt), 0)
    return Seen(sent - began, first_token_s, len(prompt), cached_tokens)


def _random_ids(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(FIRST_ID, LAST_ID) for _ in range(count)]
