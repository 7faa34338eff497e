"""Any text, streamed token by token: whole characters, and nothing of a stop string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.answers.detokenizer import Detokenizer, StopStrings
from tests.support.models.tokenizers import decode_bytes


@given(st.text(max_size=30))
def test_any_text_streams_in_whole_characters(text: str) -> None:
    detokenizer = Detokenizer(decode_bytes)
    for byte in text.encode():
        detokenizer.push(byte)
        assert text.startswith(detokenizer.text)
    detokenizer.finish()
    assert detokenizer.text == text


@given(st.text("ab.", max_size=20), st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3))
def test_stop_strings_as_a_search_of_the_whole_text(text: str, stops: list[str]) -> None:
    """The first stop string is found however the text grows, and nothing of it was ever shown."""
    finder = StopStrings(stops)
    for end in range(1, len(text) + 1):
        found = finder.find(text[:end])
        safe = finder.safe_length(text[:end])
        positions = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if positions:
            assert found is not None
            assert found[0] == min(positions)
            return
        assert found is None
        for stop in stops:
            later = text.find(stop)
            assert later < 0 or safe <= later
