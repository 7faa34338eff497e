"""What a node tells of its work on one prompt: how long each part took. Pure.

Clocks of different machines tell different times, so a node only ever tells durations. Its spans
follow one another without gaps, from the moment at which it took the message that asked for the
prompt until it had the first tokens.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

MAX_NODE_SPANS = 48
"""The most spans that a node tells of one prompt; a very long prompt has its chunks joined."""
MAX_SPAN_S = 1e7

Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=MAX_SPAN_S)]
"""A duration that can be believed: neither negative nor infinite."""

NodeSpanName = Literal[
    "admission", "fetch", "step_wait", "compute", "handover", "transfer", "paused"
]
"""admission: the prompt waits for a place and for pages. fetch: pages come from their owner.
step_wait: it waits until a step with its next chunk begins. compute: the step of a chunk.
handover: another node computes it. transfer: that node is done, and its pages are still coming.
paused: the answer gave its pages to an older one, and waits for new ones."""


class NodeSpan(msgspec.Struct, frozen=True, array_like=True):
    """One part of the time that a prompt spent at a node."""

    name: NodeSpanName
    duration_s: Seconds
    num_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How many tokens of the prompt were computed in it."""


class NodeTimes(msgspec.Struct, frozen=True, array_like=True):
    """Where the time went that one node had a prompt."""

    spans: Annotated[tuple[NodeSpan, ...], msgspec.Meta(max_length=MAX_NODE_SPANS)]
    inbox_s: Seconds = 0.0
    """How long the message that asked for the prompt may have lain in the node's inbox at most: the
    time since the node looked there before, in which it was busy with a step."""

    @property
    def total_s(self) -> float:
        """The time from taking the message to the first tokens."""
        return sum(span.duration_s for span in self.spans)


class SpanRecorder:
    """Notes the spans of one prompt as they end. Each begins where the one before it ended."""

    def __init__(self, now: float, inbox_s: float = 0.0) -> None:
        self._spans: list[NodeSpan] = []
        self._inbox_s = _believable(inbox_s)
        self._began = now

    def end(self, name: NodeSpanName, now: float, num_tokens: int = 0) -> None:
        """Ends the span that goes on, and calls it `name`. A span of no time is left out, unless
        something was computed in it."""
        duration_s = _believable(now - self._began)
        self._began = max(self._began, now)
        if duration_s or num_tokens:
            self._add(NodeSpan(name, duration_s, num_tokens))

    def end_compute(self, device_free_at: float, now: float, num_tokens: int) -> None:
        """Ends the span of a chunk. Until `device_free_at` the device computed an earlier step."""
        if device_free_at > self._began:
            self.end("step_wait", min(device_free_at, now))
        self.end("compute", now, num_tokens)

    def times(self) -> NodeTimes:
        """Returns what was noted so far."""
        return NodeTimes(tuple(self._spans), self._inbox_s)

    def _add(self, span: NodeSpan) -> None:
        goes_on = bool(self._spans) and self._spans[-1].name == span.name != "compute"
        if len(self._spans) < MAX_NODE_SPANS and not goes_on:
            self._spans.append(span)
            return
        # The time counts for the newest span of this name, so that the sum stays true.
        same = [i for i, known in enumerate(self._spans) if known.name == span.name]
        place = same[-1] if same else -1
        known = self._spans[place]
        self._spans[place] = NodeSpan(
            known.name, known.duration_s + span.duration_s, known.num_tokens + span.num_tokens
        )


def _believable(seconds: float) -> float:
    """Returns a duration that the decoder of messages lets through."""
    return min(max(seconds, 0.0), MAX_SPAN_S / (2 * MAX_NODE_SPANS))
