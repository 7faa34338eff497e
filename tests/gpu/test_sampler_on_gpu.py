"""On CUDA the sampler draws the CPU's tokens, and never waits for the device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from engine.batches.sequence import UNKNOWN, Sampled, Slice
from engine.sampling.sampler import sample
from engine.sampling.states import SequenceStates
from engine.sampling.token_counts import SeenTokens
from protocol.sampling import Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
VOCAB_SIZE = 128_257
"""Odd, so that rows begin at every alignment."""
SAMPLINGS = [
    Sampling(
        temperature=0.9,
        seed=5,
        top_k=600,
        top_p=0.95,
        min_p=0.01,
        frequency_penalty=0.4,
        presence_penalty=0.3,
        repetition_penalty=1.2,
        logit_bias=((20, 2.0), (21, -2.0)),
        prompt_length=10,
        min_new_tokens=70,
        end_token_ids=(30, 31, 32),
        num_top_logprobs=4,
        logprob_token_ids=(7, 8),
    ),
    Sampling(temperature=0.0),
    Sampling(temperature=1.2, seed=3),
    Sampling(seed=4, top_p=0.9),
    Sampling(seed=5, top_k=7, num_top_logprobs=0),
    Sampling(seed=6, min_p=0.1),
    Sampling(temperature=0.0, repetition_penalty=1.5, prompt_length=3, num_top_logprobs=20),
]
HISTORY = list(range(25, 60)) * 2
POSITIONS = [70] * len(SAMPLINGS)


@pytest.fixture
def logits() -> Tensor:
    chance = torch.Generator().manual_seed(2)
    return 4 * torch.randn(len(SAMPLINGS), VOCAB_SIZE, generator=chance)


def seen_by(samplings: list[Sampling], device: torch.device) -> SeenTokens | None:
    """Returns what sequences of `HISTORY` have seen."""
    slices = [Slice(HISTORY, 0, [], s, sequence_id=i) for i, s in enumerate(samplings)]
    return SequenceStates(VOCAB_SIZE, device).feed(slices)


def run(logits: Tensor, rows: list[int]) -> list[Sampled]:
    choices = sample(
        logits[rows],
        [SAMPLINGS[i] for i in rows],
        [POSITIONS[i] for i in rows],
        seen_by([SAMPLINGS[i] for i in rows], logits.device),
    )
    return choices.read(choices.packed.cpu())


ALL = list(range(len(SAMPLINGS)))


def test_tokens_and_logprobs_are_the_cpus(logits: Tensor) -> None:
    for here, there in zip(run(logits.cuda(), ALL), run(logits, ALL), strict=True):
        assert here.tokens[0] == there.tokens[0]
        for ours, theirs in zip(here.logprobs, there.logprobs, strict=True):
            assert ours.chosen == pytest.approx(theirs.chosen, abs=1e-4)
            assert ours.wanted == pytest.approx(theirs.wanted, abs=1e-4)
            assert [t for t, _ in ours.top] == [t for t, _ in theirs.top]


def test_a_row_draws_the_same_alone_and_in_any_batch(logits: Tensor) -> None:
    on_gpu = logits.cuda()
    together = [sampled.tokens[0] for sampled in run(on_gpu, ALL)]
    assert [run(on_gpu, [i])[0].tokens[0] for i in ALL] == together
    assert [sampled.tokens[0] for sampled in run(on_gpu, ALL[::-1])] == together[::-1]


def test_a_row_without_numbers_is_told_and_no_other_changes(logits: Tensor) -> None:
    broken = logits.cuda()
    broken[1, VOCAB_SIZE - 1] = torch.nan
    broken[3, 0] = torch.inf
    for row, (here, there) in enumerate(zip(run(broken, ALL), run(logits, ALL), strict=True)):
        assert bool(here.error) == (row in (1, 3))
        assert here.tokens == (() if here.error else there.tokens)


@pytest.fixture
def error_at_waiting(logits: Tensor) -> Iterator[Tensor]:
    """Logits on the device; whatever waits for it raises."""
    on_gpu = logits.cuda()
    sample(
        on_gpu, SAMPLINGS, POSITIONS, seen_by(SAMPLINGS, on_gpu.device)
    )  # kernels are loaded once, which may wait
    torch.cuda.set_sync_debug_mode("error")
    yield on_gpu
    torch.cuda.set_sync_debug_mode("default")


def test_nothing_waits_for_the_device(error_at_waiting: Tensor) -> None:
    device = error_at_waiting.device
    sample(error_at_waiting, SAMPLINGS, POSITIONS, seen_by(SAMPLINGS, device))
    for sampling in SAMPLINGS:
        sample(error_at_waiting[:1], [sampling], [70], seen_by([sampling], device))


def test_states_that_follow_unread_tokens_do_not_wait_for_them(error_at_waiting: Tensor) -> None:
    device = error_at_waiting.device
    states = SequenceStates(VOCAB_SIZE, device)
    tokens: Tensor | None = None
    for i in range(3):
        slices = [
            Slice(HISTORY, 0, [], s, sequence_id=n)
            if i == 0
            else Slice([UNKNOWN], len(HISTORY) + i - 1, [], s, n, sequence_id=n)
            for n, s in enumerate(SAMPLINGS)
        ]
        sources = list(range(len(slices)))
        seen = states.feed(slices, sources, tokens)
        tokens = sample(error_at_waiting, SAMPLINGS, POSITIONS, seen).tokens
