"""What a coordinator tells of its requests: to operators as JSON, to other coordinators as a
message. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from protocol.timelines.node_spans import MAX_NODE_SPANS

MAX_LISTED = 500
"""The most requests that a list has."""
MAX_REPORTED_SPANS = 40 * MAX_NODE_SPANS
"""More than a timeline ever has: attempts and pauses are bounded too."""

RequestState = Literal["waiting", "computing", "answering", "ended"]
"""waiting: it is bound to no node. computing: a node has it, and no token has come of this attempt.
answering: tokens come."""


class TimelineSpan(msgspec.Struct, frozen=True):
    """One named part of a request's time. The spans of a timeline follow one another without
    gaps."""

    name: str
    start_ms: float
    """Since the arrival of the request."""
    duration_ms: float
    where: str
    """`coordinator`, a node's name, or the two ends of a wire."""
    attempt: int
    """The number of the attempt that it belongs to; 0 for what comes before and behind these."""
    details: dict[str, int | float | str] = {}


class RequestFacts(msgspec.Struct, frozen=True):
    """What a coordinator knows of one request besides its times."""

    rid: str
    """The client's name for it: `meta_info.id` of /generate, `id` of the other dialects."""
    request_id: str
    """The cluster's name for it, as in the logs of nodes."""
    http_id: str
    """The X-Request-Id of its HTTP request."""
    state: RequestState
    outcome: str
    """How it ended: stop, length, abort, or the kind of its error; "" while it has not."""
    error: str
    """The sentence that its client got, if it failed."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    transferred_pages: int
    attempts: int
    prefill_node: str | None
    """The node that computes the prompt for another one; None if the one that answers does."""
    decode_node: str | None
    route_reason: str


class RequestReport(RequestFacts, frozen=True, kw_only=True):
    """All that a coordinator knows of one request. The long part, `spans`, is left empty in
    lists."""

    coordinator: str
    """The address at which its coordinator hears from nodes."""
    arrived_s_ago: float
    first_token_ms: float | None
    """From its arrival until the first event was written, or else until the first token came."""
    computing_ms: float
    """How much of that was computing the prompt."""
    total_ms: float
    spans: Annotated[list[TimelineSpan], msgspec.Meta(max_length=MAX_REPORTED_SPANS)] = []


class RequestFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests are asked for: those for which all that is given holds."""

    name: str = ""
    """The rid, the request id or the HTTP request's id of one request, whose spans are wanted; "":
    a list without spans."""
    state: RequestState | Literal["unfinished", ""] = ""
    node: str = ""
    """A node that it was sent to."""
    older_than_s: float = 0.0
    limit: int = MAX_LISTED
