"""Records of requests as tests want them."""

from __future__ import annotations

from kvrelay.bench.results.record import AnswerRecord


def answered(
    sent_s: float,
    first_s: float,
    gaps_s: tuple[float, ...],
    prompt: int | None = None,
    cached: int | None = None,
) -> AnswerRecord:
    """Returns the record of a request that was answered, with one token and one for each gap."""
    ended_s = first_s + sum(gaps_s)
    return AnswerRecord(sent_s, ended_s, first_s, gaps_s, 1 + len(gaps_s), prompt, cached, 0.0)


def failed(sent_s: float, ended_s: float, failure: str) -> AnswerRecord:
    """Returns the record of a request that was not answered."""
    return AnswerRecord(sent_s, ended_s, None, (), 0, None, None, 0.0, failure)
