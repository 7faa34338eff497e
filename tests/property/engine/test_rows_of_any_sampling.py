"""Rows with any sampling parameters are sampled as a plain loop over their tokens says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.batches.sequence import Sampled
from engine.sampling.sampler import sample
from protocol.sampling import Sampling
from tests.support.engine.sampling_reference import adjusted, chosen, logprobs_of
from tests.support.engine.seen_tokens import seen_in

VOCAB_SIZE = 40


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Row:
    logits: list[float]
    sampling: Sampling
    history: list[int]

    @property
    def position(self) -> int:
        return len(self.history)


TOKENS = st.integers(0, VOCAB_SIZE - 1)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    history = draw(st.lists(TOKENS, min_size=1, max_size=30))
    biases = draw(st.dictionaries(TOKENS, st.sampled_from([-30.0, -1.5, 0.5, 3.0]), max_size=4))
    penalty = st.sampled_from([0.0, 0.0, 0.7, -1.3])
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 0.4, 1.0, 1.6])),
        top_k=draw(st.sampled_from([0, 0, 2, 7, 1000])),
        top_p=draw(st.sampled_from([1.0, 0.3, 0.85])),
        min_p=draw(st.sampled_from([0.0, 0.02, 0.4])),
        seed=draw(st.integers(0, 2**63 - 1)),
        frequency_penalty=draw(penalty),
        presence_penalty=draw(penalty),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.6, 1.8])),
        logit_bias=tuple(biases.items()),
        prompt_length=draw(st.integers(1, len(history))),
        min_new_tokens=draw(st.sampled_from([0, 0, 5])),
        end_token_ids=tuple(draw(st.lists(TOKENS, max_size=3, unique=True))),
        num_top_logprobs=draw(st.sampled_from([-1, -1, 0, 3, VOCAB_SIZE])),
        logprob_token_ids=tuple(draw(st.lists(TOKENS, max_size=3))),
    )
    chance = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return Row((3 * torch.randn(VOCAB_SIZE, generator=chance)).tolist(), sampling, history)


BATCHES = st.lists(rows(), min_size=1, max_size=6)


def run(batch: Sequence[Row]) -> list[Sampled]:
    choices = sample(
        torch.tensor([row.logits for row in batch]),
        [row.sampling for row in batch],
        [row.position for row in batch],
        seen_in([(row.history, row.sampling) for row in batch], VOCAB_SIZE),
    )
    return choices.read(choices.packed)


@given(BATCHES)
def test_tokens_and_logprobs_are_those_of_a_plain_loop(batch: Sequence[Row]) -> None:
    for row, sampled in zip(batch, run(batch), strict=True):
        sampling = row.sampling
        logits = adjusted(row.logits, sampling, row.position, row.history)
        assert sampled.tokens == (chosen(logits, sampling, row.position),)
        if sampling.num_top_logprobs < 0:
            assert not sampled.logprobs
            continue
        expected = logprobs_of(logits, sampling)
        (measured,) = sampled.logprobs
        assert measured.chosen == pytest.approx(expected[sampled.tokens[0]], abs=1e-4)
        top = sorted((value for value in expected), reverse=True)[: sampling.num_top_logprobs]
        finite = [value for value in top if value > -math.inf]
        assert [v for _, v in measured.top[: len(finite)]] == pytest.approx(finite, abs=1e-4)
        assert len(measured.top) == sampling.num_top_logprobs
        for token, value in measured.top[: len(finite)]:
            assert value == pytest.approx(expected[token], abs=1e-4)
        for token, value in zip(sampling.logprob_token_ids, measured.wanted, strict=True):
            if expected[token] > -math.inf:
                assert value == pytest.approx(expected[token], abs=1e-4)
            else:
                assert -math.inf < value < -1e38


@given(BATCHES)
def test_a_row_is_the_same_to_the_last_bit_alone_and_in_any_batch(batch: Sequence[Row]) -> None:
    together = run(batch)
    assert together == [run([row])[0] for row in batch]
    assert together == run(batch[::-1])[::-1]
