"""Who may wait, how long, and when the others are told to come back."""

from __future__ import annotations

import math

import pytest

from coordinator.admission.limits import (
    ADMITTED_SHARE,
    MAX_RETRY_AFTER_S,
    TENANT_SHARE,
    Limits,
    too_many,
    whole_seconds,
)

IN_TIME = Limits(max_ttft_s=2.0, max_wait_s=100.0)
UNBOUND = Limits(max_ttft_s=0.0, max_wait_s=100.0)


@pytest.mark.parametrize("work_s", [0.0, 0.5, 1.5])
def test_who_waits_and_computes_within_the_bound_may_come(work_s: float) -> None:
    longest_s = IN_TIME.longest_wait_s(work_s)
    assert longest_s + work_s < IN_TIME.max_ttft_s
    assert IN_TIME.too_late(ADMITTED_SHARE * longest_s, work_s) is None
    refusal = IN_TIME.too_late(longest_s + 3.0, work_s)
    assert refusal is not None and 3.0 <= refusal.retry_after_s <= longest_s + 4.0


def test_a_prompt_that_is_never_in_time_goes_if_nobody_has_to_be_waited_for() -> None:
    assert IN_TIME.too_late(0.0, 50.0) is None
    refusal = IN_TIME.too_late(4.5, 50.0)
    assert refusal is not None and refusal.retry_after_s == 5


def test_without_a_bound_the_wait_alone_counts() -> None:
    assert UNBOUND.longest_wait_s(50.0) == 100.0
    assert UNBOUND.too_late(70.0, 50.0) is None and UNBOUND.too_late(71.0, 0.0) is not None


def test_one_tenant_leaves_places_for_others() -> None:
    most, unfinished = 900, 0
    while not too_many(unfinished, unfinished, most):
        unfinished += 1
    assert unfinished == most * TENANT_SHARE // (TENANT_SHARE + 1)
    assert too_many(unfinished, 0, most) == "" and "tenant" in too_many(
        unfinished, unfinished, most
    )
    assert "900 requests are unfinished" in too_many(most, 0, most)


@pytest.mark.parametrize("most", [1, 2, 8])
def test_a_few_places_are_all_given_to_one_tenant(most: int) -> None:
    assert [too_many(n, n, most) for n in range(most)] == [""] * most


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, 1), (0.2, 1), (1.1, 2), (math.inf, MAX_RETRY_AFTER_S)]
)
def test_clients_are_told_whole_seconds(seconds: float, told: int) -> None:
    assert whole_seconds(seconds) == told
