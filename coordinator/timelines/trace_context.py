"""`TraceContext`: the trace of the client that a request belongs to, as W3C's Trace Context tells
it (https://www.w3.org/TR/trace-context/). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
NO_VERSION = "ff"
SAMPLED = 1
MAX_TRACESTATE = 512


@dataclass(frozen=True)
class TraceContext:
    """A client's span, whose child the request is."""

    trace_id: str
    """32 hexadecimal digits."""
    parent_id: str
    """16 hexadecimal digits."""
    is_sampled: bool
    """True if the client keeps its trace, so that ours is to be kept too."""
    state: str = ""
    """What tracing systems hand on to one another, as it came."""

    @classmethod
    def parse(cls, traceparent: str, tracestate: str = "") -> TraceContext | None:
        """Returns the context in these headers; None if they are none, or wrong: then the request
        begins a trace of its own, as the standard asks."""
        found = TRACEPARENT.fullmatch(traceparent.strip())
        if found is None:
            return None
        version, trace_id, parent_id, flags, more = found.groups()
        is_known = version != NO_VERSION and (version != "00" or more is None)
        if not is_known or not trace_id.strip("0") or not parent_id.strip("0"):
            return None
        state = tracestate if len(tracestate) <= MAX_TRACESTATE else ""
        return cls(trace_id, parent_id, bool(int(flags, 16) & SAMPLED), state)
