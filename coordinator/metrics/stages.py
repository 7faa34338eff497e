"""`Stages`: how long each part of a request's way to its second token took. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.timelines.timeline import AttemptTimes, Timeline
from protocol.timelines.node_spans import NodeTimes


@dataclass(frozen=True)
class Stages:
    """The parts in seconds; None stands for what the request did not come to, or had no need of."""

    queue_s: float
    """How long it waited here for a node, over all attempts."""
    prefill_s: float | None = None
    """From when the message left for a node until the first token came, without waiting for
    pages."""
    exposed_s: float | None = None
    """How long it waited for pages when nothing was left to compute; None: no page had to come."""
    first_step_s: float | None = None
    """From the first token, or the last page if that came later, to the next tokens; None: the node
    that computed the prompt answers, or there were none."""
    routed_to_first_token_s: float | None = None
    """What a forecast of the router is measured by; None after more than one attempt."""


def stages_of(timeline: Timeline, now: float) -> Stages:
    """Returns the stages of a request that has ended."""
    queue_s = sum(_queue_s(attempt, now) for attempt in timeline.attempts)
    first_at = timeline.first_token_at
    answered = next((attempt for attempt in timeline.attempts if attempt.told), None)
    if first_at is None or answered is None or answered.routed_at is None:
        return Stages(queue_s)
    exposed_s = sum(_transfer_s(told.answering) for told in answered.told[:2])
    has_transfer = any(told.computing is not None for told in answered.told)
    before_first_s = _transfer_s(answered.told[0].answering)
    first_step_s = None
    if has_transfer and timeline.next_tokens_at is not None:
        after_first_s = exposed_s - before_first_s
        first_step_s = max(0.0, timeline.next_tokens_at - first_at - after_first_s)
    routed_s = first_at - answered.routed_at
    return Stages(
        queue_s,
        max(0.0, routed_s - before_first_s),
        exposed_s if has_transfer else None,
        first_step_s,
        routed_s if answered.number == 1 else None,
    )


def _queue_s(attempt: AttemptTimes, now: float) -> float:
    ends = [end for end in (attempt.routed_at, attempt.ended_at, now) if end is not None]
    return max(0.0, ends[0] - attempt.waits_from)


def _transfer_s(times: NodeTimes | None) -> float:
    if times is None:
        return 0.0
    return sum(span.duration_s for span in times.spans if span.name == "transfer")
