"""The steps of a warm-up: they fit into the node, and every form that is served is among them."""

from __future__ import annotations

import pytest

from engine.batches.sequence import UNKNOWN
from engine.steps.cuda_graphs import graph_sizes
from engine.steps.warm_up import (
    SAMPLINGS,
    WarmUpLimits,
    WarmUpStep,
    batch_sizes,
    powers_of_two,
    warm_up_steps,
)

GPU = WarmUpLimits(
    chunk_tokens=2048, max_running=64, page_size=16, num_pages=4000, context_length=32_768
)
TINY = WarmUpLimits(chunk_tokens=5, max_running=1, page_size=4, num_pages=2, context_length=6)
LIMITS = [GPU, TINY, GPU.at_most(32)]


@pytest.mark.parametrize("limits", LIMITS)
def test_every_step_fits(limits: WarmUpLimits) -> None:
    for step in warm_up_steps(limits):
        prompts = [part for part in step.slices if len(part.token_ids) > 1]
        assert len(step.slices) - len(prompts) <= limits.max_running
        assert sum(len(part.token_ids) for part in prompts) <= limits.chunk_tokens
        for part in step.slices:
            assert 0 < part.end <= limits.longest
            assert len(part.pages) * limits.page_size >= part.end
            assert max(part.pages) < limits.num_pages


def steps_of(limits: WarmUpLimits) -> list[WarmUpStep]:
    return list(warm_up_steps(limits))


def test_a_gpu_sees_every_class_of_prompts() -> None:
    prompts = [s.slices[0] for s in steps_of(GPU) if s.topic == "prompts"]
    lengths = {len(part.token_ids) for part in prompts}
    assert {n.bit_length() for n in lengths} == set(range(2, 13))
    for length in lengths:
        starts = {part.start for part in prompts if len(part.token_ids) == length}
        assert 0 in starts and 16 in starts and max(starts) > 8192
    assert {part.sampling is None for part in prompts} == {True, False}


def test_a_gpu_sees_prompts_beside_answers_and_every_batch_of_answers() -> None:
    mixed = [s.slices for s in steps_of(GPU) if s.topic == "prompts beside answers"]
    assert {len(slices) - 1 for slices in mixed} == {1, 3, 64}
    answers = [s.slices for s in steps_of(GPU) if s.topic == "answers"]
    sizes = {len(slices) for slices in answers}
    assert {n.bit_length() for n in sizes} == set(range(1, 8))
    assert {size for size in graph_sizes(64) if size <= 8} <= sizes and 64 in sizes
    assert max(slices[0].end for slices in answers) == GPU.longest


def test_samplers_and_states_are_used() -> None:
    samplings = [part.sampling for s in steps_of(GPU) for part in s.slices if part.sampling]
    for sampling in SAMPLINGS.values():
        assert sampling in samplings
    assert any(s.grammar for s in samplings)
    assert any(part.scored for s in steps_of(GPU) for part in s.slices)
    (follower,) = [s for s in steps_of(GPU) if s.follows]
    assert list(follower.slices[0].token_ids) == [UNKNOWN]


@pytest.mark.parametrize("limit", [1, 2, 3, 64, 100])
def test_classes_of_sizes(limit: int) -> None:
    assert {n.bit_length() for n in batch_sizes(limit)} == set(range(1, limit.bit_length() + 1))
    assert max([1, *powers_of_two(limit)]) == limit
