"""Simulated lives of whole clusters keep every promise, and planted bugs are found."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.sim.life import live, plan_of
from tests.sim.mutants import MUTANTS, Mutant, first_failure
from tests.sim.shrink import failure_of, shrunk

LIVES = 200
LIVES_PER_TEST = 20


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nodes that are lost are what these lives are about; they need not be told."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def require_good_lives(seeds: range) -> None:
    for seed in seeds:
        plan = plan_of(seed)
        if failure := failure_of(plan):
            faults = "\n".join(map(str, shrunk(plan).faults))
            pytest.fail(f"{failure}\npython -m tests.sim --seed {seed} --trace\n{faults}")


@pytest.mark.parametrize("first", range(0, LIVES, LIVES_PER_TEST))
def test_lives_keep_every_promise(first: int) -> None:
    require_good_lives(range(first, first + LIVES_PER_TEST))


@pytest.mark.verify
@pytest.mark.parametrize("first", range(LIVES, 5_000, 400))
def test_many_lives_keep_every_promise(first: int) -> None:
    require_good_lives(range(first, first + 400))


@pytest.mark.verify
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: Mutant) -> None:
    assert first_failure(mutant) is not None


def test_planted_bugs_that_show_at_once_are_found_and_taken_back() -> None:
    names = {"two owners of one page", "double retry", "token repeated after a resume"}
    some = [mutant for mutant in MUTANTS if mutant.name in names]
    assert len(some) == len(names)
    for mutant in some:
        assert first_failure(mutant, max_lives=30) is not None, mutant.name
    live(plan_of(0))


def test_a_life_is_the_same_again() -> None:
    lines: list[list[str]] = [[], []]
    for told in lines:
        live(plan_of(3), tell=lambda now, line, told=told: told.append(f"{now} {line}"))  # type: ignore[misc]
    assert lines[0] == lines[1] != []


def test_lives_are_full_of_work_and_faults() -> None:
    outcomes = [live(plan_of(seed)) for seed in range(20)]
    assert sum(outcome.num_requests for outcome in outcomes) >= 20 * len(outcomes)
    assert sum(outcome.num_faults for outcome in outcomes) >= 3 * len(outcomes)
    assert sum(outcome.num_pages_moved for outcome in outcomes) > 0
    assert sum(outcome.num_forced_tokens for outcome in outcomes) > 0
    assert sum(outcome.num_copied_pages for outcome in outcomes) >= len(outcomes)


def test_in_some_lives_requests_are_aborted_and_held() -> None:
    outcomes = [live(plan_of(seed)) for seed in range(40)]
    assert sum(outcome.ends.get("abort", 0) for outcome in outcomes) > 3
    assert sum(outcome.num_pauses for outcome in outcomes) > 3


def test_in_some_lives_prefill_nodes_answer_and_chunks_are_cut() -> None:
    outcomes = [live(plan_of(seed)) for seed in range(40)]
    assert sum(outcome.num_tokens_of_prefill_nodes > 0 for outcome in outcomes) > 3
    assert sum(outcome.num_cut_steps > 0 for outcome in outcomes) > 3


def test_nodes_that_are_told_to_stop_finish_first_and_cost_no_request_anything() -> None:
    """`SimCluster.leaves` looks at what a node leaves behind, and in these lives it may be
    nothing."""
    plans = [plan for plan in map(plan_of, range(60)) if plan.is_orderly]
    outcomes = [live(plan) for plan in plans]
    assert len(plans) > 5 and all(outcome.num_left for outcome in outcomes)
    ends = {end for outcome in outcomes for end in outcome.ends}
    assert not ends & {"error timed_out", "error unavailable", "error ends_nodes"}


def test_in_some_lives_answers_give_way() -> None:
    assert any(live(plan_of(seed)).num_preemptions for seed in range(LIVES))
