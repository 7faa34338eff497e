"""Figures of runs, on records small enough to reckon by hand."""

from __future__ import annotations

import pytest

from kvrelay.bench.results.percentiles import percentile, percentiles_of
from kvrelay.bench.results.record import NO_TOKEN, WRONG_LENGTH, AnswerPart, AnswerWatch
from kvrelay.bench.results.slo import Slo
from kvrelay.bench.results.statistics import figures_of
from protocol.config import ConfigError
from tests.support.bench.records import answered, failed


def test_a_percentile_lies_on_the_line_between_its_neighbours() -> None:
    assert percentile([10.0, 20.0, 30.0, 40.0], 0.5) == 25.0
    assert percentile([10.0, 20.0, 30.0], 0.9) == pytest.approx(28.0)
    assert percentile([7.0], 0.99) == 7.0
    assert percentiles_of([]) is None


def test_latencies_of_an_answer() -> None:
    """Two tokens come in one event after the first: they share its gap."""
    watch = AnswerWatch(sent_s=1.0)
    watch.add(AnswerPart(has_content=False), 1.1)
    watch.add(AnswerPart(has_content=True, num_tokens=1), 1.5)
    watch.add(AnswerPart(has_content=True, num_tokens=3), 1.9)
    record = watch.end(2.0, 3)
    assert record.failure == ""
    assert record.ttft_s == pytest.approx(0.5), "an event without content is no first token"
    assert record.gaps_s == pytest.approx((0.2, 0.2))
    assert record.tpot_s == pytest.approx(0.2)
    assert record.e2e_s == pytest.approx(1.0)


def test_events_without_counts_are_a_token_each_until_the_usage_tells() -> None:
    watch = AnswerWatch(sent_s=0.0)
    watch.add(AnswerPart(has_content=True, new_text="a"), 1.0)
    watch.add(AnswerPart(has_content=True, new_text="b"), 3.0)
    watch.add(AnswerPart(num_tokens=5, num_prompt_tokens=7, num_cached_tokens=4), 3.5)
    record = watch.end(4.0, 5)
    assert (record.num_tokens, record.gaps_s, record.failure) == (5, (2.0,), "")
    assert (record.num_prompt_tokens, record.num_cached_tokens) == (7, 4)
    assert watch.text == "ab"


def test_an_answer_without_a_token_or_with_a_wrong_number_has_failed() -> None:
    assert AnswerWatch(0.0).end(1.0, None).failure == NO_TOKEN
    watch = AnswerWatch(0.0)
    watch.add(AnswerPart(has_content=True, num_tokens=2), 1.0)
    assert watch.end(1.0, 3).failure == WRONG_LENGTH
    assert watch.end(1.0, None).failure == ""
    assert watch.end(1.0, 2).failure == ""
    assert watch.end(1.0, 3, "timeout").failure == "timeout", "the first reason stays"


def test_rates_count_what_succeeded_over_the_whole_run() -> None:
    figures = figures_of(
        [
            answered(sent_s=0.0, first_s=0.1, gaps_s=(0.1, 0.1), prompt=100, cached=50),
            answered(sent_s=1.0, first_s=1.3, gaps_s=(0.2,), prompt=300, cached=250),
            failed(sent_s=2.0, ended_s=4.0, failure="status 429"),
            failed(sent_s=2.0, ended_s=3.0, failure="status 429"),
        ],
        [],
    )
    assert (figures.num_requests, figures.num_errors) == (4, 2)
    assert figures.errors == {"status 429": 2}
    assert figures.duration_s == 4.0
    assert figures.requests_per_s == 0.5
    assert figures.output_tokens_per_s == 5 / 4
    assert figures.input_tokens_per_s == 100.0
    assert figures.hit_rate == 300 / 400
    assert figures.ttft_ms is not None and figures.ttft_ms.p50 == pytest.approx(200.0)
    assert figures.itl_ms is not None and figures.itl_ms.count == 3


def test_failures_and_slow_answers_are_misses() -> None:
    records = [
        answered(sent_s=0.0, first_s=0.1, gaps_s=(0.01,) * 9),
        answered(sent_s=0.0, first_s=0.3, gaps_s=(0.01,) * 9),
        answered(sent_s=0.0, first_s=0.1, gaps_s=(0.09,) * 9),
        failed(sent_s=0.0, ended_s=2.0, failure="timeout"),
    ]
    slos = [Slo.parse("ttft=200"), Slo.parse("itl=50")]
    figures = figures_of(records, slos)
    assert figures.goodput_share == 1 / 4
    assert figures.goodput_per_s == 1 / 2.0
    assert figures_of(records, []).goodput_share == 3 / 4, "without limits errors alone miss"


def test_itl_of_a_request_is_its_95th_percentile() -> None:
    """One hiccup in forty gaps is forgiven, three are not."""
    slo = Slo.parse("itl=50")
    assert slo.is_kept(answered(0.0, 0.1, (0.01,) * 39 + (0.9,)))
    assert not slo.is_kept(answered(0.0, 0.1, (0.01,) * 37 + (0.9,) * 3))
    assert slo.is_kept(answered(0.0, 0.1, ())), "an answer of one token has no gap"


def test_more_than_one_percent_of_errors_is_not_a_result() -> None:
    good = [answered(0.0, 0.1, ())] * 99
    assert figures_of([*good, failed(0.0, 1.0, "timeout")], []).is_result
    assert not figures_of([*good[1:], *[failed(0.0, 1.0, "timeout")] * 2], []).is_result
    assert not figures_of([], []).is_result


@pytest.mark.parametrize("text", ["ttft", "ttft=", "ttft=-1", "ttft=soon", "speed=3", "ttft=nan"])
def test_a_wrong_limit_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="--slo ttft=200"):
        Slo.parse(text)
