"""Tokens with penalties are those of a plain loop over the whole history, whatever steps do."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.steps.runner import ModelRunner
from tests.support.engine.penalised_steps import KINDS, Faults, compute, load_runner


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    return load_runner(tmp_path_factory.mktemp("model"))


@given(
    faults=st.dictionaries(st.integers(0, 15), st.sampled_from(KINDS), max_size=6),
    chunk=st.sampled_from([1, 7, 16, 100]),
    runs_ahead=st.booleans(),
    preempted=st.dictionaries(st.integers(1, 20), st.integers(0, 3), max_size=3),
)
def test_tokens_are_those_of_the_whole_history(
    runner: ModelRunner,
    faults: Faults,
    chunk: int,
    runs_ahead: bool,
    preempted: Mapping[int, int],
) -> None:
    compute(runner, faults, chunk, runs_ahead, preempted)
