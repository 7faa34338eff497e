"""What the durations of steps tell of a node."""

from __future__ import annotations

import msgspec
import pytest

from engine.batches.sequence import Slice
from node.load.rates import MIN_SHARE, UNMEASURED, Rates
from protocol.admission import MIN_CHUNK_TOKENS, chunk_tokens
from tests.support.node.schedulers import GREEDY

TOKENS_PER_S, STEP_S = 1000.0, 0.01


def step_of(*lengths: int) -> list[Slice]:
    return [Slice([1] * length, 0, [0], GREEDY) for length in lengths]


def test_before_anything_was_measured() -> None:
    assert Rates().read() == UNMEASURED


def test_a_chunk_counts_for_what_it_adds_to_the_step_of_its_answers() -> None:
    """However short it is: a rate that took it for all of the step would get lower with each
    shorter chunk, and the chunks shorter with each lower rate."""
    rates = Rates()
    for num_tokens in (100, 50, 25):
        rates.observe(step_of(1, 1), STEP_S)
        rates.observe(step_of(1, 1, num_tokens), STEP_S + num_tokens / TOKENS_PER_S)
    assert rates.prefill_tokens_per_s == pytest.approx(TOKENS_PER_S)
    assert rates.step_s == pytest.approx(STEP_S)


def test_the_last_token_of_a_prompt_is_no_answer_that_others_wait_beside() -> None:
    """Else the step of answers would seem to take what the other chunks leave of it: nothing. Later
    chunks would be too long for the answers beside them."""
    rates = Rates()
    rates.observe(step_of(50), STEP_S + 50 / TOKENS_PER_S)
    last = Slice([1], 32, [0], msgspec.structs.replace(GREEDY, prompt_length=33))
    rates.observe([*step_of(55), last], STEP_S + 56 / TOKENS_PER_S)
    assert rates.step_s == 0.0, "no step of answers was seen"
    rates.observe([*step_of(55), Slice([1], 9, [0], None)], STEP_S + 56 / TOKENS_PER_S)
    assert rates.step_s == 0.0
    rates.observe(step_of(1), STEP_S)
    assert rates.step_s == STEP_S


def test_a_chunk_that_seems_to_take_no_time_is_taken_to_need_a_little() -> None:
    rates = Rates()
    rates.observe(step_of(1), STEP_S)
    rates.observe(step_of(1, 100), 1.01 * STEP_S)
    assert rates.prefill_tokens_per_s == pytest.approx(100 / (MIN_SHARE * 1.01 * STEP_S))


def test_a_step_without_its_chunk_would_not_have_taken_longer() -> None:
    rates = Rates()
    rates.observe(step_of(1), STEP_S)
    rates.observe(step_of(100), 0.1)
    rates.observe(step_of(1, 4), 0.9 * STEP_S)
    assert rates.step_s == pytest.approx(STEP_S), "so short a chunk tells nothing"
    rates.observe(step_of(1, 20), 0.9 * STEP_S)
    assert rates.step_s == pytest.approx(MIN_SHARE * 0.9 * STEP_S)
    assert rates.prefill_tokens_per_s == pytest.approx(1000.0)


@pytest.mark.parametrize("is_rate_known", [True, False])
def test_where_every_step_has_a_chunk_they_grow_to_the_bound_and_not_beyond(
    is_rate_known: bool,
) -> None:
    """As on a node that begins to serve while many wait."""
    rates, longest_s, step_s, max_itl_s = Rates(), 0.0, 0.0, 0.08
    if is_rate_known:
        rates.observe(step_of(200), STEP_S + 200 / TOKENS_PER_S)
    for _ in range(60):
        now = rates.read()
        length = chunk_tokens(max_itl_s, now.step_s, now.prefill_tokens_per_s)
        step_s = STEP_S + length / TOKENS_PER_S
        longest_s = max(longest_s, step_s)
        rates.observe(step_of(1, length), step_s)
    assert longest_s <= max_itl_s + 1 / TOKENS_PER_S
    assert step_s >= 0.9 * max_itl_s


def test_a_process_that_was_stopped_soon_measures_as_before() -> None:
    """Of the chunk that was cut while it thought its steps longer than they are, it learns nothing
    wrong."""
    rates = Rates()
    for _ in range(3):
        rates.observe(step_of(1), STEP_S)
        rates.observe(step_of(1, 50), STEP_S + 50 / TOKENS_PER_S)
    rates.observe(step_of(1), 100.0)
    assert rates.step_s < 1.3 * STEP_S
    rates.observe(step_of(1, 50), STEP_S + 50 / TOKENS_PER_S)
    assert rates.prefill_tokens_per_s == pytest.approx(TOKENS_PER_S, rel=0.05)


def test_one_wrong_measurement_of_a_short_chunk_is_corrected_by_the_next_long_one() -> None:
    """As on a GPU, where the first few tokens of a prompt cost nothing beside answers."""
    rates = Rates()
    rates.observe(step_of(1), STEP_S)
    rates.observe(step_of(1, MIN_CHUNK_TOKENS), 1.001 * STEP_S)
    assert rates.prefill_tokens_per_s > 20 * TOKENS_PER_S
    rates.observe(step_of(1, 700), STEP_S + 0.7)
    assert rates.prefill_tokens_per_s < 1.2 * TOKENS_PER_S


def test_a_prompt_alone_counts_for_all_of_its_step() -> None:
    rates = Rates()
    rates.observe(step_of(1), STEP_S)
    rates.observe(step_of(100), STEP_S + 0.1)
    assert rates.prefill_tokens_per_s == pytest.approx(100 / (STEP_S + 0.1))


def test_chunks_too_short_to_tell_anything_are_left_out() -> None:
    rates = Rates()
    rates.observe(step_of(1, MIN_CHUNK_TOKENS - 1), STEP_S)
    rates.observe(step_of(MIN_CHUNK_TOKENS - 1), STEP_S)
    assert rates.read() == UNMEASURED


@pytest.mark.parametrize("max_itl_s", [0.05, 0.012, 0.01, 0.005])
@pytest.mark.parametrize("num_answers", [1, 40])
def test_steps_settle_at_their_bound(max_itl_s: float, num_answers: int) -> None:
    """Each chunk is cut by what the steps before it took. Where answers alone take as long as the
    bound, or longer, prompts go on by the least chunk."""
    rates, singles = Rates(), step_of(*[1] * num_answers)
    step_s = 0.0
    for _ in range(30):
        rates.observe(singles, STEP_S)
        now = rates.read()
        length = chunk_tokens(max_itl_s, now.step_s, now.prefill_tokens_per_s)
        step_s = STEP_S + length / TOKENS_PER_S
        rates.observe([*singles, *step_of(length)], step_s)
    least_s = STEP_S + MIN_CHUNK_TOKENS / TOKENS_PER_S
    assert step_s == pytest.approx(max(max_itl_s, least_s), abs=2 / TOKENS_PER_S)
