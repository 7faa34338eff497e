"""What is promised of a cluster whose processes die, and what came of it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.faults import Fault
from tests.chaos.questions import RESUMABLE, Question, Tokens
from tests.chaos.streams import Seen, wrong

LEASE_S = 3.0
MAX_GAP_P99_S = LEASE_S + 3.0
GROWTH, GROWTH_MEBIBYTES = 1.25, 48.0
"""The memory of a process may be so many times what it was when it was warm, and so much more."""
SHOWN = 5
"""So many of the longest waits are shown."""
REDIS_IS_BACK_AFTER_S = 5.0

IsTie = Callable[[Question, Tokens, Tokens, int], bool]
"""Whether two answers to a question differ at an index only as floats are rounded."""


@dataclass(frozen=True)
class Happened:
    """A fault that happened."""

    fault: Fault
    began_s: float
    ended_s: float


@dataclass(frozen=True)
class Course:
    """All that was seen of one run."""

    questions: Sequence[Question]
    expected: Sequence[Tokens]
    seen: Sequence[Seen]
    faults: Sequence[Happened]
    skipped: Sequence[Fault]
    """Faults that this host does not allow."""
    held_pages: int
    is_clean: bool
    """An audit afterwards found no wrong record of a page."""
    warm_mebibytes: Mapping[str, float]
    """Resident memory by process before the first fault."""
    last_mebibytes: Mapping[str, float]


def broken_promises(course: Course, is_tie: IsTie | None) -> list[str]:
    """Returns a sentence for each promise that was broken. Without `is_tie` every token must be the
    expected one."""
    broken = [_told(one) for one in course.seen if one.error and not _may_fail(one, course.faults)]
    for one, index in wrong(course.seen, course.expected).values():
        assert one.tokens is not None
        question, right = course.questions[one.question], course.expected[one.question]
        if is_tie is None or not is_tie(question, right, one.tokens, index):
            broken.append(
                f"{one.kind} (question {one.question}) from {one.began_s:.1f} s on has "
                f"{one.tokens[index : index + 3]} at token {index}, "
                f"not {right[index : index + 3]}; attempts {one.attempts}, "
                f"taken over {one.num_taken_over} times"
            )
    gap = percentile([one.worst_gap_s for one in course.seen], 0.99)
    if gap > MAX_GAP_P99_S:
        broken.append(f"the 99th percentile of the worst gaps is {gap:.1f} s")
    if course.held_pages:
        broken.append(f"{course.held_pages} pages are still held")
    if not course.is_clean:
        broken.append("the audit is not clean")
    for name, last in course.last_mebibytes.items():
        warm = course.warm_mebibytes[name]
        if last > warm * GROWTH + GROWTH_MEBIBYTES:
            broken.append(f"{name} has grown from {warm:.0f} to {last:.0f} MiB")
    return broken


def failed_with_their_coordinator(course: Course) -> list[str]:
    """Returns a sentence for each request that failed and could not be resumed."""
    return [_told(one) for one in course.seen if one.error and _may_fail(one, course.faults)]


def figures(course: Course) -> dict[str, Any]:
    """Returns the figures of a run, as they go into its JSON line."""
    gaps = [one.worst_gap_s for one in course.seen if one.tokens is not None]
    first = [one.first_token_s for one in course.seen if one.first_token_s is not None]
    failed = [one for one in course.seen if one.error]
    return {
        "faults": dict(Counter(happened.fault.kind for happened in course.faults)),
        "skipped_faults": dict(Counter(fault.kind for fault in course.skipped)),
        "requests": len(course.seen),
        "by_kind": dict(Counter(one.kind for one in course.seen)),
        "errors": sum(not _may_fail(one, course.faults) for one in failed),
        "failed_with_their_coordinator": sum(_may_fail(one, course.faults) for one in failed),
        "hangs": sum(one.is_hung for one in course.seen),
        "other_tokens": len(wrong(course.seen, course.expected)),
        "went_on_at_another_node": sum(one.attempts > 1 for one in course.seen),
        "taken_over": sum(one.num_taken_over > 0 for one in course.seen),
        "retries": sum(one.num_retries for one in course.seen),
        "tokens": sum(len(one.tokens or ()) for one in course.seen),
        **_spread("worst_gap", gaps),
        **_spread("first_token", first),
        "held_pages": course.held_pages,
        "audit_clean": course.is_clean,
        "warm_mebibytes": dict(course.warm_mebibytes),
        "last_mebibytes": dict(course.last_mebibytes),
    }


def table(course: Course) -> str:
    """Returns the figures for people."""
    lines = [
        f"{name.replace('_', ' '):32}{_shown(value)}" for name, value in figures(course).items()
    ]
    return "\n".join(lines)


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the smallest value that at most `1 - share` of all exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _may_fail(one: Seen, faults: Sequence[Happened]) -> bool:
    """Returns True if a request that cannot be resumed ran while its coordinator may have died, or
    a turn while Redis, which has the turns before, was away."""
    if one.kind in RESUMABLE or one.is_hung:
        return False
    return any(
        happened.began_s <= one.ended_s
        and (
            (happened.fault.kind == "kill coordinator" and happened.ended_s >= one.began_s)
            or (
                happened.fault.victim == "redis"
                and one.kind == "session"
                and happened.ended_s + REDIS_IS_BACK_AFTER_S >= one.began_s
            )
        )
        for happened in faults
    )


def longest_waits(course: Course) -> list[str]:
    """Returns a sentence for each of the longest waits, so that the log can be read there."""
    answered = [one for one in course.seen if one.tokens is not None]
    by_first = sorted(answered, key=lambda one: one.first_token_s or 0.0)[-SHOWN:]
    by_gap = sorted(answered, key=lambda one: one.worst_gap_s)[-SHOWN:]
    return [
        f"first token after {one.first_token_s:.1f} s: {one.kind} from {one.began_s:.1f} s on, "
        f"attempts {one.attempts}, sent again {one.num_retries} times"
        for one in reversed(by_first)
    ] + [
        f"gap of {one.worst_gap_s:.1f} s up to {one.worst_gap_at_s:.1f} s: {one.kind}, "
        f"attempts {one.attempts}, taken over {one.num_taken_over} times"
        for one in reversed(by_gap)
    ]


def _told(one: Seen) -> str:
    return f"{one.kind} (question {one.question}) from {one.began_s:.1f} s on: {one.error}"


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f"{name}_p50_s": round(percentile(values, 0.5), 3),
        f"{name}_p99_s": round(percentile(values, 0.99), 3),
        f"{name}_max_s": round(max(values, default=0.0), 3),
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return str(value)
