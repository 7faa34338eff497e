"""Which long gaps there were between the tokens of answers, and whether many came at once. Pure.

A percentile does not say what made the gaps that it counts. A transfer delays the second token of
one answer, and a node that stands still delays all its answers at the same moment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from kvrelay.bench.results.record import AnswerRecord

LONG_S = 0.03
"""A gap that is longer than this is told of: steps of answers alone take a fifth of it."""
MANY = 0.5
"""A moment is common if this part of the answers under way had a long gap in it."""


@dataclass(frozen=True)
class Pauses:
    """The gaps of more than LONG_S in the answers of a load."""

    before_second: int
    """Those between the first token of an answer and its second one."""
    later: int
    common: int
    """How many of both lay in a common moment."""

    def __str__(self) -> str:
        return (
            f"gaps over {LONG_S * 1e3:.0f} ms: {self.before_second} before second tokens, "
            f"{self.later} later ones; {self.common} of them in many answers at once"
        )


Span = tuple[float, float]
"""When something began and when it ended, in seconds."""


def pauses_of(answers: Sequence[AnswerRecord]) -> Pauses:
    """Returns the long gaps of the answers."""
    by_answer = [gaps for gaps in map(_gaps, answers) if gaps]
    long = [gap for gaps in by_answer for gap in gaps if _is_long(gap)]
    num_waiting = _Counted(long)  # gaps of one answer do not overlap, so these are answers
    num_under_way = _Counted([(gaps[0][0], gaps[-1][1]) for gaps in by_answer])
    common = 0
    for begin_s, _ in long:
        moment_s = begin_s + LONG_S / 2
        waiting = num_waiting.at(moment_s)
        common += waiting > 1 and waiting >= MANY * num_under_way.at(moment_s)
    before_second = sum(_is_long(gaps[0]) for gaps in by_answer)
    return Pauses(before_second, len(long) - before_second, common)


class _Counted:
    """Counts how many of some spans a moment lies in."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._begins_s = sorted(begin_s for begin_s, _ in spans)
        self._ends_s = sorted(end_s for _, end_s in spans)

    def at(self, moment_s: float) -> int:
        """Returns the number for a moment."""
        return bisect_right(self._begins_s, moment_s) - bisect_right(self._ends_s, moment_s)


def _gaps(answer: AnswerRecord) -> list[Span]:
    """Returns the gaps before each token but the first."""
    if answer.first_s is None:
        return []
    return list(pairwise(accumulate(answer.gaps_s, initial=answer.first_s)))


def _is_long(gap: Span) -> bool:
    return gap[1] - gap[0] > LONG_S
