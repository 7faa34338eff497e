"""What a coordinator counts over its requests: since its start, and over the last minutes. Pure."""

from __future__ import annotations

from collections import deque
from typing import Annotated, Any

import msgspec

WINDOW_S = 300.0
BUCKET_S = 10.0


class RequestCounters(msgspec.Struct):
    """Sums over requests that have ended. The admin API and the tables are views of them."""

    requests: Annotated[int, msgspec.Meta(description="Requests that have ended.")] = 0
    requests_hit: Annotated[
        int, msgspec.Meta(description="Requests that found pages of their prompt cached.")
    ] = 0
    prompt_tokens: Annotated[int, msgspec.Meta(description="Tokens of prompts.")] = 0
    cached_tokens: Annotated[
        int, msgspec.Meta(description="Prompt tokens whose KV was cached on some node.")
    ] = 0
    fetched_tokens: Annotated[
        int,
        msgspec.Meta(
            description="Cached tokens whose pages another node sent to the one that computed."
        ),
    ] = 0
    completion_tokens: Annotated[int, msgspec.Meta(description="Tokens of answers.")] = 0
    transferred_pages: Annotated[
        int, msgspec.Meta(description="Pages that prefill nodes sent to decode nodes.")
    ] = 0
    retries: Annotated[int, msgspec.Meta(description="Attempts after the first one.")] = 0
    failed_requests: Annotated[
        int, msgspec.Meta(description="Requests that ended with an error.")
    ] = 0
    disconnected_requests: Annotated[
        int, msgspec.Meta(description="Requests whose client left before their end.")
    ] = 0

    def add(self, other: RequestCounters) -> None:
        """Adds every counter of `other` to this one's."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def report(self) -> dict[str, Any]:
        """Returns the counters and the two shares of hits, as the admin API shows them."""
        return msgspec.structs.asdict(self) | {
            "request_hit_ratio": ratio(self.requests_hit, self.requests),
            "token_hit_ratio": ratio(self.cached_tokens, self.prompt_tokens),
        }


class Totals:
    """Adds up the counters of requests over the whole life of this process and over the last
    minutes.

    The window is made of buckets of BUCKET_S each; old ones are dropped as a whole.
    """

    def __init__(self) -> None:
        self.lifetime = RequestCounters()
        self._buckets: deque[tuple[float, RequestCounters]] = deque()

    def finished(self, counters: RequestCounters, now: float) -> None:
        """Adds one more request, given as the counters of it alone."""
        self.lifetime.add(counters)
        began = now - now % BUCKET_S
        if not self._buckets or self._buckets[-1][0] < began:
            self._buckets.append((began, RequestCounters()))
            self._drop_old(now)
        self._buckets[-1][1].add(counters)

    def recent(self, now: float) -> RequestCounters:
        """Returns the sums over the last WINDOW_S, to the accuracy of a bucket."""
        self._drop_old(now)
        counters = RequestCounters()
        for _, bucket in self._buckets:
            counters.add(bucket)
        return counters

    def _drop_old(self, now: float) -> None:
        while self._buckets and self._buckets[0][0] <= now - WINDOW_S - BUCKET_S:
            self._buckets.popleft()


def ratio(part: int, whole: int) -> float:
    """Returns `part` as a share of `whole`, or 0 if `whole` is 0."""
    return round(part / whole, 4) if whole else 0.0
