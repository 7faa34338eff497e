"""Tokens with penalties are those of a plain loop over the whole history, also in chunks, ahead of
unread tokens, after steps that failed, and after a preemption."""

from __future__ import annotations

import pytest

from engine.steps.runner import ModelRunner
from tests.support.engine.driving import Sequences
from tests.support.engine.penalised_steps import (
    KINDS,
    NUM_NEW,
    PROMPTS,
    compute,
    expected,
    load_runner,
    sampling_of,
)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    return load_runner(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_that_fails_is_made_good(runner: ModelRunner, kind: str) -> None:
    """Also while another one is started ahead of it."""
    done = compute(runner, dict.fromkeys(range(0, 200, 3), kind), 16, True, {4: 0, 9: 2})
    assert done.num_failed >= 4
    assert done.num_ahead > 5


def test_rows_with_penalties_run_ahead(runner: ModelRunner) -> None:
    assert compute(runner, {}, 16, True, {}).num_ahead >= NUM_NEW - 1


def test_penalties_change_the_answers(runner: ModelRunner) -> None:
    """Else the tests above would compare nothing."""
    plain = Sequences(runner)
    for number, prompt in enumerate(PROMPTS):
        has_state = sampling_of(number).has_state
        assert (plain.generate(prompt, NUM_NEW) != expected(runner, number)) == has_state
