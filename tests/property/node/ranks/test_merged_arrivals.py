"""What several ranks say of pages that arrive, in any order, reads as if one had said it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from node.ranks.merging import MergedArrivals


@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(1, 6))
def test_a_page_is_here_when_all_ranks_have_it(
    rng: random.Random, num_ranks: int, num_pages: int
) -> None:
    """News only grows, is what the slowest rank has, and stops before the end of all."""
    arrivals, have, told = MergedArrivals(num_pages, num_ranks), [0] * num_ranks, 0
    running = set(range(num_ranks))
    while running:
        assert not arrivals.is_over
        rank = rng.choice(sorted(running))
        have[rank] += 1
        if have[rank] < num_pages:
            news = arrivals.arrived(rank, have[rank])
        else:
            running.discard(rank)
            news = arrivals.ended(rank, "")
        least = min(have)
        assert news == (least if least > told and running else 0)
        told = max(told, news)
    assert arrivals.is_over and not arrivals.error
