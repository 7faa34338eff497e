"""The tables of everything that a node counts, and that a coordinator counts. Pure.

Heartbeats, and what coordinators tell one another, carry them as they are; the admin API, the
tables of the command line and the metrics are views of them. A new counter is a new field with its
description here, and a line that counts.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec


class NodeCounters(msgspec.Struct):
    """What one incarnation of a node has counted so far. Every counter only grows.

    The node's scheduler counts in one such object; each `Load` has a copy of it.
    """

    requests: Annotated[int, msgspec.Meta(description="Requests that were admitted.")] = 0
    requests_hit: Annotated[
        int, msgspec.Meta(description="Requests that found pages of their prompt cached here.")
    ] = 0
    computed_tokens: Annotated[
        int, msgspec.Meta(description="Prompt tokens whose KV this node computed.")
    ] = 0
    reused_tokens: Annotated[
        int, msgspec.Meta(description="Prompt tokens whose KV was cached on this node.")
    ] = 0
    fetched_tokens: Annotated[
        int,
        msgspec.Meta(description="Prompt tokens whose KV came from another node that owned it."),
    ] = 0
    generated_tokens: Annotated[int, msgspec.Meta(description="Tokens of answers.")] = 0
    preemptions: Annotated[
        int,
        msgspec.Meta(description="Answers that gave their pages to older ones, to go on later."),
    ] = 0
    pages_sent: Annotated[int, msgspec.Meta(description="Pages that were given to a send.")] = 0
    pages_received: Annotated[
        int, msgspec.Meta(description="Pages that arrived from other nodes, fetched ones included.")
    ] = 0
    pages_fetched: Annotated[
        int, msgspec.Meta(description="Pages that arrived because this node asked an owner.")
    ] = 0
    pages_evicted: Annotated[
        int, msgspec.Meta(description="Cached pages that gave way to new ones.")
    ] = 0
    bytes_sent: Annotated[int, msgspec.Meta(description="Bytes of pages that left this node.")] = 0
    transfer_failures: Annotated[
        int, msgspec.Meta(description="Transfers of pages that broke, were late or were refused.")
    ] = 0
    refusals: Annotated[
        int,
        msgspec.Meta(
            description="Connections that did not prove the cluster secret, and messages that "
            "could not be believed."
        ),
    ] = 0
    compiles_while_serving: Annotated[
        int,
        msgspec.Meta(
            description="Kernels and graphs that were compiled after the node was ready: each held "
            "up its requests. 0 unless its warm-up lacks something."
        ),
    ] = 0
    busy_s: Annotated[
        float,
        msgspec.Meta(ge=0.0, le=1e9, description="Seconds spent in steps, failed ones included."),
    ] = 0.0

    def copy(self) -> NodeCounters:
        """Returns the counters as they stand now."""
        return msgspec.structs.replace(self)


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
    refused_requests: Annotated[
        int,
        msgspec.Meta(
            description="Requests that were refused at once, with a 429: no place, or too late a "
            "turn. They count nowhere else."
        ),
    ] = 0
    stalled_clients: Annotated[
        int,
        msgspec.Meta(
            description="Connections that were given up because their client did not read."
        ),
    ] = 0
    aborted_requests: Annotated[
        int, msgspec.Meta(description="Requests that /abort_request or a pause ended.")
    ] = 0
    early_divergences: Annotated[
        int,
        msgspec.Meta(
            description="Requests whose prompt began as one that is cached, by a page or more, and "
            "went its own way before token 256."
        ),
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


def ratio(part: int, whole: int) -> float:
    """Returns `part` as a share of `whole`, or 0 if `whole` is 0."""
    return round(part / whole, 4) if whole else 0.0
