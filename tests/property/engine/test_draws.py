"""A row draws its token by a formula, whatever rows it has for neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.sampling.sampler import sample
from protocol.sampling import Sampling
from tests.support.engine.sampling_reference import gumbel


def tokens_of(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    return sample(logits, samplings, positions).tokens


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 50, 1000]),
    top_p=st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    seed=st.integers(0, 2**63 - 1),
)


@given(st.lists(st.tuples(SAMPLINGS, st.integers(0, 2**20)), min_size=1, max_size=9))
def test_a_row_draws_the_same_alone_and_in_any_batch(rows: Sequence[tuple[Sampling, int]]) -> None:
    samplings, positions = [s for s, _ in rows], [p for _, p in rows]
    chance = torch.Generator().manual_seed(len(rows))
    logits = 3 * torch.randn(len(rows), 300, generator=chance)
    together = tokens_of(logits, samplings, positions).tolist()
    assert together == tokens_of(logits, samplings, positions).tolist()
    backwards = tokens_of(logits.flip(0), samplings[::-1], positions[::-1]).tolist()
    assert together == backwards[::-1]
    alone = [int(tokens_of(logits[i : i + 1], [s], [p])) for i, (s, p) in enumerate(rows)]
    assert together == alone


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31))
def test_draws_follow_the_formula(seed: int, position: int) -> None:
    """In plain integers. An answer may continue on a node of another version or device, so the
    formula must never change."""
    logits = torch.linspace(0, 9, 64).sin()
    noisy = [value + gumbel(seed, position, i) for i, value in enumerate(logits.tolist())]
    assert tokens_of(logits[None], [Sampling(seed=seed)], [position])[0] == noisy.index(max(noisy))
