"""Chunks of prompts are cut where answers wait for their step, and nowhere else."""

from __future__ import annotations

from decode.answers import Answers
from engine.batches.sequence import Sampled, Slice
from engine.cache.prefix_cache import PrefixCache
from node.core.scheduler import Scheduler, SchedulerLimits
from node.load.rates import UNMEASURED, StepRates
from prefill.handovers import Handovers
from protocol.admission import MIN_CHUNK_TOKENS
from tests.support.node.schedulers import DECODE, P0, PAGE, asked_prefill, generate, scheduler_of

RATES = StepRates(step_s=0.01, prefill_tokens_per_s=1_000.0)
CHUNK = 128


def node_of(max_itl_s: float) -> Scheduler:
    limits = SchedulerLimits(CHUNK, max_running=4, max_waiting=8, max_itl_s=max_itl_s)
    return scheduler_of("decode", P0, DECODE, limits, PrefixCache(64, PAGE), [Answers, Handovers])


def next_lengths(node: Scheduler, rates: StepRates = RATES) -> list[int]:
    slices: list[Slice] = node.next_batch(0.0, rates)[0]
    node.finish([Sampled((7,)) if part.sampling else None for part in slices], 0.0)
    return [len(part.token_ids) for part in slices]


def answering(max_itl_s: float) -> Scheduler:
    """A node with one answer under way."""
    node = node_of(max_itl_s)
    node.handle(generate("a", [1] * 20, 50, prefill="", stops=()), 0.0)
    assert next_lengths(node) == [20]
    return node


def test_without_answers_nothing_is_cut() -> None:
    node = node_of(0.05)
    node.handle(generate("b", [2] * 300, prefill=""), 0.0)
    assert [next_lengths(node) for _ in range(3)] == [[128], [128], [44]]


def test_beside_answers_a_chunk_has_the_time_that_they_leave() -> None:
    node = answering(0.05)
    node.handle(generate("b", [2] * 100, prefill="", stops=()), 0.0)
    assert [next_lengths(node) for _ in range(4)] == [[1, 40], [1, 40], [1, 20], [1, 1]]


def test_prompts_share_what_there_is_whatever_they_are_for() -> None:
    node = answering(0.05)
    node.handle(generate("b", [2] * 30, prefill="", stops=()), 0.0)
    node.handle(asked_prefill("c", 60), 0.0)
    assert next_lengths(node) == [1, 30, 10]


def test_every_prompt_goes_on_although_the_bound_leaves_nothing() -> None:
    for rates in (UNMEASURED, RATES, StepRates(0.0, 1_000.0), StepRates(0.01, 0.0)):
        node = answering(0.001)
        node.handle(generate("b", [2] * 100, prefill=""), 0.0)
        assert next_lengths(node, rates) == [1, MIN_CHUNK_TOKENS]


def test_no_chunk_is_longer_than_it_would_be_alone() -> None:
    for max_itl_s in (0.0, 10.0):
        node = answering(max_itl_s)
        node.handle(generate("b", [2] * 300, prefill=""), 0.0)
        assert next_lengths(node) == [1, CHUNK]
