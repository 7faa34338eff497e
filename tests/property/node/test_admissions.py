"""A node admits what it says that it has room for, whatever runs or waits there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.admission import admission_tokens, most_tokens
from tests.support.node.schedulers import (
    HASHER,
    decode_scheduler,
    generate,
    step,
)


@given(
    running=st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 200), st.integers(0, 20)), max_size=5
    ),
    length=st.integers(1, 100),
    count=st.integers(1, 100),
)
def test_a_node_admits_what_it_says_that_it_has_room_for(
    running: list[tuple[int, int, int]], length: int, count: int
) -> None:
    """Whatever runs or waits, and has grown: so who counts on the room sends nobody to wait."""
    decode = decode_scheduler(num_pages=40, running=8)
    for i, (prompt_length, max_new_tokens, num_steps) in enumerate(running):
        decode.handle(generate(str(i), [i] * prompt_length, max_new_tokens, prefill=""), 0.0)
        for _ in range(num_steps):
            step(decode)
    before = decode.load()
    num_pages = HASHER.num_pages(admission_tokens(length, most_tokens(length, count)))
    decode.handle(generate("new", [99] * length, count, prefill=""), 0.0)
    waiting = decode.load()
    assert waiting.room_pages == before.room_pages - num_pages, "those who wait count at once"
    decode.next_batch(0.0)
    if num_pages <= before.room_pages:
        assert decode.load().num_waiting == 0
    elif not before.num_waiting:
        assert decode.load().num_waiting == 1
