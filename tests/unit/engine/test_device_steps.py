"""Steps on a device: when they are over, what a broken device says, and which may have compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.batches.batch import StepArrays
from engine.batches.sequence import Slice
from engine.build import EngineOptions, load_model_runner
from engine.errors import DeviceBroken
from engine.steps.runner import DeviceStep, ModelRunner
from engine.steps.seen_shapes import SeenShapes
from protocol.sampling import Sampling
from tests.support.driving import CPU, PAGE_SIZE
from tests.support.families import save_random_model

GREEDY = Sampling(temperature=0.0)


class FakeEvent:
    def __init__(self, error: Exception | None = None) -> None:
        self.num_waits, self._error = 0, error

    def synchronize(self) -> None:
        self.num_waits += 1
        if self._error is not None:
            raise self._error


def step_with(event: Any) -> DeviceStep:
    return DeviceStep([Slice([1, 2, 3], 0, [0], None)], None, None, event)


def test_a_step_that_samples_nothing_is_waited_for_as_well() -> None:
    event = FakeEvent()
    assert step_with(event).sampled() == [None]
    assert event.num_waits == 1


def test_waiting_for_a_broken_device_says_so() -> None:
    with pytest.raises(DeviceBroken, match="illegal memory access"):
        step_with(FakeEvent(torch.AcceleratorError("illegal memory access"))).sampled()


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    path: Path = tmp_path_factory.mktemp("model")
    save_random_model("llama3", path)
    return load_model_runner(path, EngineOptions("float32", PAGE_SIZE), lambda _: 4, CPU)


def test_starting_a_step_on_a_broken_device_says_so(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise torch.AcceleratorError("illegal memory access")

    monkeypatch.setattr(runner.model, "forward", fails)
    with pytest.raises(DeviceBroken, match="illegal memory access"):
        runner.start([Slice([1, 2, 3], 0, [0], GREEDY)])


def test_a_step_on_a_cpu_is_over_when_it_is_started_and_compiles_nothing(
    runner: ModelRunner,
) -> None:
    step = runner.start([Slice([1, 2, 3], 0, [0], GREEDY)])
    assert (step.ended, step.has_compiled) == (None, False)


def arrays_of(*lengths: int, num_pages: int = 2) -> StepArrays:
    """Slices of these lengths; the longest context has `num_pages` pages."""
    contexts = [*lengths[:-1], max(lengths[-1], num_pages * PAGE_SIZE)]
    slices = [
        Slice([1] * length, context - length, list(range(-(-context // PAGE_SIZE))), GREEDY)
        for length, context in zip(lengths, contexts, strict=True)
    ]
    return StepArrays.of(slices, PAGE_SIZE)


def test_the_first_step_of_each_class_of_shapes_may_compile() -> None:
    seen = SeenShapes()
    steps = [
        (arrays_of(20), False),
        (arrays_of(1, num_pages=3), False),  # singles
        (arrays_of(1, num_pages=3), True),  # by a graph
        (arrays_of(1, 1, 1, 1, num_pages=3), False),  # more of them: split otherwise
        (arrays_of(20, 1, num_pages=3), False),  # both
        (arrays_of(1, num_pages=16), False),  # a stride that Triton knows how to use
        (arrays_of(300, num_pages=20), False),  # many rows
    ]
    assert [seen.add(*step) for step in steps] == [True] * len(steps)
    assert [seen.add(*step) for step in steps] == [False] * len(steps)
    assert not seen.add(arrays_of(21), False), "of the same class as 20"
