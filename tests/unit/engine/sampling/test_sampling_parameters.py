"""Every sampling parameter does to a row of a batch what a plain loop over its tokens says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from engine.sampling import sampler
from engine.sampling.penalties import adjust
from engine.sampling.sampler import sample
from protocol.sampling import Sampling
from tests.support.engine.sampling_reference import chosen
from tests.support.engine.seen_tokens import seen_in


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_batch_that_needs_no_change_gets_none() -> None:
    logits = torch.randn(3, 8)
    samplings = [Sampling(), Sampling(temperature=0.0), Sampling(top_p=0.5, top_k=3)]
    assert adjust(logits, samplings, [5] * 3) is logits


def test_logits_stay_as_they_were() -> None:
    """A device may hold them where its next step writes."""
    logits = torch.randn(2, 8)
    before = logits.clone()
    sampling = Sampling(
        frequency_penalty=1.0, logit_bias=((3, 2.0),), min_new_tokens=9, end_token_ids=(1,)
    )
    for samplings in ([sampling, sampling], [sampling, Sampling()]):
        sample(logits, samplings, [2, 2], seen_in([([1, 2], s) for s in samplings], 8))
        assert torch.equal(logits, before)


def test_all_logprobs_are_a_distribution_in_order() -> None:
    logits = torch.randn(4, 500, generator=torch.Generator().manual_seed(3))
    samplings = [Sampling(temperature=t, num_top_logprobs=500) for t in (0.0, 0.3, 1.0, 3.0)]
    choices = sample(logits, samplings, [1] * 4)
    for sampled in choices.read(choices.packed):
        (measured,) = sampled.logprobs
        values = [value for _, value in measured.top]
        assert values == sorted(values, reverse=True)
        assert math.fsum(map(math.exp, values)) == pytest.approx(1.0, abs=1e-5)
        assert {token for token, _ in measured.top} == set(range(500))
        assert dict(measured.top)[sampled.tokens[0]] == measured.chosen


LARGE = 400


@pytest.mark.parametrize("spread", [0.0, 0.5, 5.0], ids=["flat", "wide", "peaked"])
def test_filters_of_a_large_vocabulary(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a look at the likeliest tokens is enough, and where all of them have to be sorted."""
    monkeypatch.setattr(sampler, "FEW", LARGE // 5)
    chance = torch.Generator().manual_seed(6)
    logits = spread * torch.randn(LARGE, generator=chance) + torch.linspace(0, 0.1, LARGE)
    samplings = [
        Sampling(seed=seed, top_k=top_k, top_p=top_p)
        for seed in range(2)
        for top_k in (0, 9, 240)
        for top_p in (1.0, 0.9, 0.3)
    ]
    together = sample(logits.expand(len(samplings), -1), samplings, [3] * len(samplings)).tokens
    for sampling, token in zip(samplings, together.tolist(), strict=True):
        assert token == chosen(logits.tolist(), sampling, 3)
        assert token == int(sample(logits[None], [sampling], [3]).tokens)


def tied() -> Tensor:
    """Tokens 2, 5, 7 and 11 are the likeliest, and equal."""
    logits = torch.zeros(1, 64)
    logits[0, [2, 5, 7, 11]] = 4.0
    return logits


@pytest.mark.parametrize("count", [1, 2, 3, 4, 20])
def test_of_equals_the_lowest_id_is_named_first(count: int) -> None:
    choices = sample(tied(), [Sampling(temperature=0.0, num_top_logprobs=count)], [0])
    (sampled,) = choices.read(choices.packed)
    assert sampled.tokens == (2,)
    ids = [token for token, _ in sampled.logprobs[0].top]
    assert ids == ([2, 5, 7, 11] + [t for t in range(64) if t not in (2, 5, 7, 11)])[:count]


@pytest.mark.parametrize("filters", [{"top_k": 2}, {"top_p": 0.2}, {"top_k": 40, "top_p": 0.2}])
def test_equals_stay_together(filters: dict[str, float]) -> None:
    """Which of them a sort puts first is nobody's choice."""
    samplings = [Sampling(seed=seed, **filters) for seed in range(200)]  # type: ignore[arg-type]
    tokens = sample(tied().expand(200, -1), samplings, [0] * 200).tokens
    assert set(tokens.tolist()) == {2, 5, 7, 11}
    greedy = [Sampling(seed=seed, top_k=1) for seed in range(200)]
    assert set(sample(tied().expand(200, -1), greedy, [0] * 200).tokens.tolist()) == {2}


def test_extreme_penalties_and_biases_stay_numbers() -> None:
    logits = 20 * torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    samplings = [
        Sampling(temperature=1e-30, repetition_penalty=1e-300, num_top_logprobs=16),
        Sampling(temperature=1e-30, logit_bias=((3, 1e30), (4, -1e30)), num_top_logprobs=16),
        Sampling(min_new_tokens=5, end_token_ids=tuple(range(15)), num_top_logprobs=16),
    ]
    seen = seen_in([([0, 1, 2], s) for s in samplings], 16)
    choices = sample(logits, samplings, [2] * 3, seen)
    sampled = choices.read(choices.packed)
    assert [s.tokens for s in sampled[1:]] == [(3,), (15,)]
    for one in sampled:
        assert len(one.logprobs[0].top) == 16
        assert all(math.isfinite(value) for _, value in one.logprobs[0].top)
