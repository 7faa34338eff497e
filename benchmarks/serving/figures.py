"""The figures of a row, and the ratios between two systems. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.serving.client import TIMEOUT_S, RowRecord
from kvrelay.bench.results.percentiles import Percentiles, percentiles_of
from kvrelay.bench.results.record import AnswerRecord

Figures = dict[str, Any]
LESS_IS_BETTER = ("ttft_mean_ms", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")
MORE_IS_BETTER = ("tokens_per_s",)
COMPARED = (*LESS_IS_BETTER, *MORE_IS_BETTER)
"""The figures that a pair is compared by."""


def figures_by_row(records: Sequence[RowRecord]) -> dict[str, Figures]:
    """Returns the figures of each row, in the order in which rows first ended."""
    rows: dict[str, list[AnswerRecord]] = {}
    for record in records:
        rows.setdefault(record.row, []).append(record.answer)
    return {row: figures_of(answers) for row, answers in rows.items()}


def figures_of(answers: Sequence[AnswerRecord]) -> Figures:
    """Returns the figures of one row.

    A request that failed is a miss: its first token counts as if it had come after TIMEOUT_S, so
    that nobody becomes faster by refusing. Gaps, tokens and hits are those of good answers. One
    that is `retried` was given to nodes more than once: another node failed it before.
    """
    good = [answer for answer in answers if not answer.failure]
    failed = [answer for answer in answers if answer.failure]
    ttfts_s = [answer.ttft_s for answer in good if answer.ttft_s is not None]
    ttft = percentiles_of([*ttfts_s, *(TIMEOUT_S for _ in failed)])
    gaps_s = [gap_s for answer in good for gap_s in answer.gaps_s]
    itl = percentiles_of(gaps_s)
    duration_s = max(a.ended_s for a in answers) - min(a.sent_s for a in answers)
    num_tokens = sum(answer.num_tokens for answer in good)
    told = [a for a in good if a.num_cached_tokens is not None and a.num_prompt_tokens]
    num_prompt = sum(answer.num_prompt_tokens or 0 for answer in told)
    num_cached = sum(answer.num_cached_tokens or 0 for answer in told)
    return {
        "requests": len(answers),
        "errors": len(failed),
        "retried": sum(answer.num_attempts > 1 for answer in answers),
        "first_error": next((f"{a.failure}: {a.message}"[:300] for a in failed), ""),
        "ttft_mean_ms": _ms(ttft, "mean"),
        "ttft_p50_ms": _ms(ttft, "p50"),
        "ttft_p99_ms": _ms(ttft, "p99"),
        "itl_p50_ms": _ms(itl, "p50"),
        "itl_p99_ms": _ms(itl, "p99"),
        "itl_max_ms": round(max(gaps_s) * 1e3, 2) if gaps_s else None,
        "tokens_per_s": round(num_tokens / duration_s, 1) if duration_s else 0.0,
        "hit_rate": round(num_cached / num_prompt, 4) if num_prompt else None,
    }


def median_of(repeats: Sequence[Figures], name: str) -> float | None:
    """Returns the median of a figure over the repeats of a row; None where it has none."""
    values = [figures[name] for figures in repeats if figures.get(name) is not None]
    return statistics.median(values) if values else None


def ratios(
    ours: Mapping[str, Sequence[Figures]], theirs: Mapping[str, Sequence[Figures]]
) -> dict[str, dict[str, float]]:
    """Returns ours ÷ theirs for each row that both have, of the medians over repeats. `ours` and
    `theirs` have the repeats of each row, and were measured on one machine in one run."""
    found: dict[str, dict[str, float]] = {}
    for row in (row for row in ours if row in theirs):
        pairs = {
            name: (median_of(ours[row], name), median_of(theirs[row], name)) for name in COMPARED
        }
        found[row] = {
            name: round(our / their, 3)
            for name, (our, their) in pairs.items()
            if our is not None and their
        }
    return found


def _ms(found: Percentiles | None, name: str) -> float | None:
    return round(getattr(found, name) * 1e3, 2) if found else None
