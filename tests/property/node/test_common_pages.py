"""Pages that several prompts have in common, whoever needs them when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.node.lone_nodes import PAGE, LoneNodes

COMMON = list(range(1, 6 * PAGE + 1))


def alike(count: int) -> dict[str, list[int]]:
    """Prompts with six pages in common, and two of their own."""
    return {f"r{i}": [*COMMON, *range(100 + 40 * i, 120 + 40 * i)] for i in range(count)}


@given(st.integers(2, 8), st.integers(0, 1 << 30))
def test_pages_that_several_need_at_once_travel_once(count: int, seed: int) -> None:
    nodes = LoneNodes(seed)
    for name, prompt in alike(count).items():
        nodes.ask("d0", name, prompt, prefill="p0")
    nodes.run()
    num_moved = nodes.cluster.plane.num_pages_moved
    assert nodes.load("p0").counters.pages_sent == num_moved == 6 + 2 * count
    assert nodes.load("d0").counters.pages_received == num_moved
