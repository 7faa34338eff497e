"""What the outcomes of requests say about a cluster. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.overload.load import Sent


def phase_figures(
    sent: Sequence[Sent], begins: float, ends: float, bound_s: float, right: Sequence[int] | None
) -> dict[str, float]:
    """Returns what became of the requests that were sent between two times, per second."""
    within = [one for one in sent if begins <= one.at < ends]
    seconds = ends - begins
    good = [one for one in within if one.is_good(bound_s, right)]
    complete = [one for one in within if one.status == 200 and not one.failed]
    refused = [one for one in within if one.status == 429]
    return {
        "sent_per_s": round(len(within) / seconds, 2),
        "good_per_s": round(len(good) / seconds, 2),
        "answered_per_s": round(len(complete) / seconds, 2),
        "refused_per_s": round(len(refused) / seconds, 2),
        "ttft_p50_s": percentile(first_tokens(within), 0.5),
        "ttft_p99_s": percentile(first_tokens(within), 0.99),
        "refused_p99_s": percentile(
            [one.ended_at - one.at for one in refused if one.ended_at], 0.99
        ),
    }


def recovery_s(
    sent: Sequence[Sent], ends: float, bound_s: float, right: Sequence[int] | None
) -> float | None:
    """Returns how long after the overload's end the last request was sent that was not answered as
    it should be; None if that goes on to the end of the load."""
    after = [one for one in sent if one.at >= ends]
    bad = [one.at - ends for one in after if not one.is_good(bound_s, right)]
    if not bad:
        return 0.0
    last = max(bad)
    return None if last >= max(one.at for one in after) - ends else round(last, 2)


def first_tokens(sent: Sequence[Sent]) -> list[float]:
    """Returns the times to the first token of those that got one."""
    return [one.first_token_s for one in sent if one.first_token_s is not None]


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the value that `share` of the values do not exceed; 0 if there are none."""
    if not values:
        return 0.0
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 4)
