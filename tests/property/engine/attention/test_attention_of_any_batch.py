"""Attention of any batch equals a naive reference in float64."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.attention.backend import AttentionForm
from tests.support.engine.attention import HEAD_DIM, Case
from tests.support.engine.attention_backends import BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    parts=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), min_size=1, max_size=6),
    page_size=st.sampled_from([1, 2, 8]),
    window=st.none() | st.integers(1, 30),
    softcap=st.none() | st.just(0.7),
    scale=st.sampled_from([HEAD_DIM**-0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_batch(
    backend: str,
    parts: list[tuple[int, int]],
    page_size: int,
    window: int | None,
    softcap: float | None,
    scale: float,
    seed: int,
) -> None:
    form = AttentionForm(scale, window, softcap)
    Case(parts, page_size, seed=seed).check(BACKENDS[backend](), form)
