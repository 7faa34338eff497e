"""The samples that a fingerprint takes of a tensor of any shape."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.weights.fingerprint import (
    MAX_SAMPLES_PER_TENSOR,
    MIN_SAMPLES_PER_TENSOR,
    SAMPLE_ELEMENTS,
    sample_parts,
)


@given(
    shape=st.lists(st.integers(1, 700), min_size=1, max_size=4).filter(
        lambda sizes: torch.Size(sizes).numel() < 10**9
    ),
    num_samples=st.integers(MIN_SAMPLES_PER_TENSOR, MAX_SAMPLES_PER_TENSOR),
)
def test_samples_lie_within_a_tensor_reach_both_ends_and_are_not_too_many(
    shape: list[int], num_samples: int
) -> None:
    parts = list(sample_parts(tuple(shape), num_samples))
    size = torch.Size(shape).numel()
    if parts == [()]:
        assert size <= num_samples * SAMPLE_ELEMENTS
        return
    assert len(parts) == num_samples
    for part in parts:
        assert len(part) == len(shape)
        assert all(
            0 <= one.start < one.stop <= length for one, length in zip(part, shape, strict=True)
        )
        assert torch.Size([one.stop - one.start for one in part]).numel() <= SAMPLE_ELEMENTS
    assert all(one.start == 0 for one in parts[0])
    assert all(one.stop == length for one, length in zip(parts[-1], shape, strict=True))
