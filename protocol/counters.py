"""`NodeCounters`: the table of everything that a node counts. Pure.

Heartbeats carry it as it is; the admin API, the tables of the command line and the metrics are
views of it. A new counter is a new field with its description here, and a line that counts.
"""

from __future__ import annotations

from typing import Annotated

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
    busy_s: Annotated[
        float,
        msgspec.Meta(description="Seconds spent in steps, failed ones included."),
    ] = 0.0

    def copy(self) -> NodeCounters:
        """Returns the counters as they stand now."""
        return msgspec.structs.replace(self)
