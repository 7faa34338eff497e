"""Arrivals of any rate, and answers however their tokens come."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kvrelay.bench.results.percentiles import percentile
from kvrelay.bench.results.record import AnswerPart, AnswerWatch
from kvrelay.bench.workloads.arrivals import at_own_times, at_rate
from kvrelay.bench.workloads.dialogue import Dialogue, Passage, UserTurn, token_ids

TURN = UserTurn("a", 1)
TIMES = st.floats(0.0, 1e6)


@given(rate=st.floats(0.01, 1e4), count=st.integers(1, 200), seed=st.integers())
def test_a_process_keeps_the_order_and_follows_from_its_seed(
    rate: float, count: int, seed: int
) -> None:
    dialogues = [Dialogue((UserTurn(str(i), 1),)) for i in range(count)]
    found = at_rate(dialogues, rate, random.Random(seed))
    assert [dialogue.turns for dialogue in found] == [dialogue.turns for dialogue in dialogues]
    times = [dialogue.arrival_s or 0.0 for dialogue in found]
    assert times[0] == 0.0 and times == sorted(times)
    assert found == at_rate(dialogues, rate, random.Random(seed))


@given(rate=st.floats(0.01, 1e4), seed=st.integers())
def test_gaps_of_a_process_are_exponential(rate: float, seed: int) -> None:
    """Their mean is 1/rate and as large as their deviation; bounds of six standard errors."""
    found = at_rate([Dialogue((TURN,))] * 3000, rate, random.Random(seed))
    times = [dialogue.arrival_s or 0.0 for dialogue in found]
    gaps = [(after - before) * rate for before, after in pairwise(times)]
    assert abs(sum(gaps) / len(gaps) - 1) < 6 / len(gaps) ** 0.5
    longer_than_mean = sum(gap > 1 for gap in gaps) / len(gaps)
    assert abs(longer_than_mean - 0.3679) < 6 * 0.4822 / len(gaps) ** 0.5


@given(times=st.lists(TIMES, min_size=1).map(sorted), speedup=st.floats(0.01, 100.0))
def test_own_times_begin_at_once_and_keep_their_proportions(
    times: list[float], speedup: float
) -> None:
    found = at_own_times([Dialogue((TURN,), at_s) for at_s in times], speedup)
    for at_s, dialogue in zip(times, found, strict=True):
        assert dialogue.arrival_s == (at_s - times[0]) / speedup


@given(
    steps=st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(0, 5)), min_size=1, max_size=50),
    sent_s=st.floats(0.0, 100.0),
)
def test_gaps_and_the_first_token_add_up_to_the_last_token(
    steps: list[tuple[float, int]], sent_s: float
) -> None:
    watch = AnswerWatch(sent_s)
    now_s, count, first, last_s = sent_s, 0, 0, sent_s
    for pause_s, num_new in steps:
        now_s += pause_s
        count += num_new
        if num_new:
            first, last_s = first or num_new, now_s
        watch.add(AnswerPart(has_content=count > 0, num_tokens=count), now_s)
    record = watch.end(now_s, count)
    assert record.num_tokens == count
    if not count:
        assert record.failure
    else:
        assert len(record.gaps_s) == count - first
        assert abs((record.first_s or 0) + sum(record.gaps_s) - last_s) < 1e-6


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1), share=st.floats(0.0, 1.0))
def test_a_percentile_is_within_the_values_and_grows(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert ordered[0] - 1e-6 <= found <= ordered[-1] + 1e-6
    assert percentile(ordered, 0.0) == ordered[0] and percentile(ordered, 1.0) == ordered[-1]
    assert found <= percentile(ordered, min(1.0, share + 0.1)) + 1e-6


@given(seed=st.text(max_size=20), sizes=st.lists(st.integers(0, 600), max_size=4))
def test_passages_have_their_lengths_and_stay_in_the_vocabulary(
    seed: str, sizes: list[int]
) -> None:
    vocabulary = range(32, 999)
    passages = [Passage(f"{seed}{i}", size) for i, size in enumerate(sizes)]
    ids = token_ids(passages, vocabulary)
    assert len(ids) == sum(sizes) and all(one in vocabulary for one in ids)
    longer = token_ids([Passage("x", 50)], vocabulary)
    assert token_ids([Passage("x", 20)], vocabulary) == longer[:20]
