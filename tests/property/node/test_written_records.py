"""What a node writes about its pages is prefix-closed at every moment, and right in the end."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.support.node.written_record import Writing, page


@given(st.integers(0, 1 << 30))
def test_whatever_happens_the_set_is_prefix_closed_and_in_the_end_the_same(seed: int) -> None:
    """`PlayedRedis` checks after every script that no page is without its parent."""
    rng, writing = random.Random(seed), Writing()
    depth = dict.fromkeys(range(4), 0)
    """Leading pages of four chains of ten that the node owns."""
    for _ in range(rng.randrange(60)):
        match rng.randrange(9):
            case 0 | 1 | 2:
                chain = rng.randrange(4)
                new = rng.randint(0, 10)
                old, depth[chain] = depth[chain], new
                if new > old:
                    writing.stored(*range(10 * chain + old, 10 * chain + new))
                elif new < old:
                    writing.removed(*range(10 * chain + old - 1, 10 * chain + new - 1, -1))
            case 3 | 4:
                writing.one()
            case 5:
                writing.writer.republish()
            case 6:
                if writing.writer.next_call(writing.now) is not None:
                    writing.writer.unreachable(writing.now)
            case 7:
                writing.redis.incarnation, writing.redis.owned = 0, set()
            case 8:
                writing.now += rng.random()
    for _ in range(2):  # a lost record may be noticed with the next renewal only
        writing.now = max(writing.now, writing.writer.wake_at)
        writing.all()
    expected = {page(10 * chain + i) for chain in depth for i in range(depth[chain])}
    assert set(writing.writer.owned) == writing.redis.owned == expected
