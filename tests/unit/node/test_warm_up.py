"""Warming up a node: a real runner computes each form of step, and nothing of it stays."""

from __future__ import annotations

import logging

import pytest

from engine.batches.sequence import NO_SEQUENCE
from engine.build import load_model_runner
from engine.errors import DeviceBroken
from engine.options import EngineOptions
from engine.steps.warm_up import WarmUpLimits, warm_up_steps
from infra.models import EMBEDDED
from node.warm_up import warm_up
from tests.support.engine.driving import CPU, PAGE_SIZE, Sequences, prompt_of
from tests.support.node.poisoned_runner import Runner

LIMITS = WarmUpLimits(
    chunk_tokens=32, max_running=16, page_size=PAGE_SIZE, num_pages=60, context_length=900
)


def test_all_forms_are_computed_and_leave_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    options = EngineOptions(page_size=PAGE_SIZE)
    runners = [load_model_runner(EMBEDDED, options, lambda _: 60, CPU) for _ in range(2)]
    warm_up(runners[0], LIMITS)
    lines = [record.getMessage() for record in caplog.records]
    for topic in {step.topic for step in warm_up_steps(LIMITS)}:
        assert sum(line.startswith(f"warming up: {topic}, ") for line in lines) == 1
    assert not [line for line in lines if "failed" in line]
    assert "warm after" in lines[-1] and "0 kernels" in lines[-1]
    assert len(runners[0].states) == len(runners[0].grammars) == 0
    prompt = prompt_of(50, 100)
    warm, cold = (Sequences(runner).generate(prompt, 8) for runner in runners)
    assert warm == cold


def test_a_step_that_fails_is_a_line_and_a_broken_device_ends_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.node.poisoned_runner.POISON", 1)
    warm_up(Runner(ValueError("no such kernel")), LIMITS)
    assert "warming up: a step of prompts failed: no such kernel" in caplog.text
    with pytest.raises(DeviceBroken):
        warm_up(Runner(DeviceBroken("gone")), LIMITS)


def test_every_sequence_with_a_state_has_an_id() -> None:
    for step in warm_up_steps(LIMITS):
        stateful = [
            part.sequence_id for part in step.slices if part.sampling and part.sampling.has_state
        ]
        assert NO_SEQUENCE not in stateful and len(set(stateful)) == len(stateful)
