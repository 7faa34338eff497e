"""Whatever waits, short prompts have the larger head start on the order of arrival."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.routing import dispatch


@given(
    works_s=st.lists(st.floats(1e-4, 100.0), min_size=2, max_size=2), scale_s=st.floats(1e-3, 10.0)
)
def test_the_shorter_one_has_the_larger_head_start(works_s: list[float], scale_s: float) -> None:
    shorter_s, longer_s = sorted(works_s)
    head_starts_s = [dispatch.head_start_s(work_s, scale_s) for work_s in (shorter_s, longer_s)]
    assert head_starts_s[0] >= head_starts_s[1] >= 0.0
    assert dispatch.head_start_s(longer_s, scale_s) <= dispatch.head_start_s(longer_s, 2 * scale_s)
