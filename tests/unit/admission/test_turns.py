"""How fast work is begun, and how long those who come now will wait."""

from __future__ import annotations

import pytest

from coordinator.admission.answer_lengths import FIRST_GUESS_TOKENS, AnswerLengths
from coordinator.admission.queue_speed import MEMORY_S, QueueSpeed
from coordinator.admission.turns import ANSWER_WEIGHT, Turns, Work

PRESUMED = 5_000.0


def measured(gap_s: float, num_tokens: int, count: int, speed: QueueSpeed, now: float) -> float:
    """Lets work leave a queue that stays full, and returns when the last did."""
    for _ in range(count):
        now += gap_s
        speed.departed(num_tokens, True, now)
    return now


@pytest.mark.parametrize("gap_s", [0.01, 0.5, 10.0])
def test_the_speed_is_what_leaves_a_queue_per_second(gap_s: float) -> None:
    speed = QueueSpeed()
    assert speed.tokens_per_s(PRESUMED, 0.0) == PRESUMED
    now = measured(gap_s, 100, 50, speed, 0.0)
    assert speed.tokens_per_s(PRESUMED, now) == pytest.approx(100 / gap_s)
    assert speed.tokens_per_s(PRESUMED, now + 0.9 * gap_s) == pytest.approx(100 / gap_s)
    assert speed.tokens_per_s(PRESUMED, now + 100 * gap_s) < 0.5 * 100 / gap_s


def test_time_in_which_nothing_waits_says_nothing() -> None:
    speed = QueueSpeed()
    now = measured(0.1, 100, 20, speed, 0.0)
    speed.departed(100, False, now + 0.1)
    speed.departed(100, True, now + 1_000.0)
    speed.interrupted()
    speed.departed(100, False, now + 2_000.0)
    assert speed.tokens_per_s(PRESUMED, now + 9_000.0) == pytest.approx(1_000.0)


def test_the_speed_follows_nodes_that_slow_down() -> None:
    speed = QueueSpeed()
    now = measured(0.1, 100, 100, speed, 0.0)
    now = measured(0.4, 100, round(3 * MEMORY_S / 0.4), speed, now)
    assert speed.tokens_per_s(PRESUMED, now) == pytest.approx(250.0, rel=0.2)


def test_an_answer_is_as_long_as_others_were_and_no_longer_than_it_may_be() -> None:
    lengths = AnswerLengths()
    assert lengths.expected(10) == 10 and lengths.expected(1_000) == FIRST_GUESS_TOKENS
    for _ in range(500):
        lengths.observe(300)
    assert lengths.expected(1_000) == 300


def test_the_wait_is_the_work_before_by_the_speed() -> None:
    turns = Turns()
    assert turns.wait_s("a", 0, PRESUMED, 0.0) == 0.0
    several = [turns.joined("a", 0, 1_000, 1, 0.0) for _ in range(10)]
    each = several[0].num_tokens
    assert each == 1_000 + ANSWER_WEIGHT
    assert turns.wait_s("a", 0, PRESUMED, 0.0) == pytest.approx(10 * each / PRESUMED)
    assert turns.wait_s("b", 0, PRESUMED, 0.0) == 0.0
    assert turns.wait_s("a", 0, 0.0, 0.0) == float("inf"), "nobody knows of a speed"
    turns.served(several[:1], 1.0)
    turns.served(several[1:2], 2.0)
    assert turns.wait_s("a", 0, PRESUMED, 2.0) == pytest.approx(8.0)


@pytest.mark.parametrize(("num_answer_tokens", "owed"), [(None, -1), (0, 0), (100, 1)])
def test_what_was_guessed_wrong_is_settled_once(num_answer_tokens: int | None, owed: int) -> None:
    turns = Turns()

    def served(tenant: str) -> Work:
        work = turns.joined(tenant, 0, 500, 50, 0.0)
        turns.served([work], 0.0)
        return work

    work, other = served("a"), served("b")
    turns.settled(other, 0, 0.0)
    turns.settled(work, num_answer_tokens, 0.0)
    turns.settled(work, num_answer_tokens, 0.0)
    for tenant in ("a", "b"):
        turns.joined(tenant, 0, 500, 50, 0.0)
    order = turns.shares.in_turn({"a": ["a"], "b": ["b"]}, lambda _: 1, 2)
    assert order == (["b", "a"] if owed > 0 else ["a", "b"])


def test_who_leaves_the_queue_leaves_nothing() -> None:
    turns = Turns()
    work = turns.joined("a", 3, 500, 50, 0.0)
    turns.left(work, 1.0)
    assert turns.wait_s("a", 0, PRESUMED, 1.0) == 0.0
    assert turns.shares.num_unfinished("a") == 0
