"""Half characters stay inside; stop strings are found and their beginnings held back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.answers.detokenizer import Detokenizer, StopStrings


def decode_bytes(ids: Sequence[int]) -> str:
    """A tokenizer whose every token is one byte."""
    return bytes(ids).decode(errors="replace")


@given(st.text(max_size=30))
def test_any_text_streams_in_whole_characters(text: str) -> None:
    detokenizer = Detokenizer(decode_bytes)
    for byte in text.encode():
        detokenizer.push(byte)
        assert text.startswith(detokenizer.text)
    detokenizer.finish()
    assert detokenizer.text == text


def test_text_comes_as_soon_as_it_is_whole() -> None:
    detokenizer = Detokenizer(decode_bytes)
    seen = []
    for byte in "a€b".encode():
        detokenizer.push(byte)
        seen.append(detokenizer.text)
    assert seen == ["a", "a", "a", "a€", "a€b"]


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    detokenizer = Detokenizer(decode_bytes)
    for byte in "ok€".encode()[:-1]:
        detokenizer.push(byte)
    assert detokenizer.text == "ok"
    detokenizer.finish()
    assert detokenizer.text == "ok\N{REPLACEMENT CHARACTER}"


def test_the_space_between_prompt_and_answer_stays() -> None:
    """As Llama 2's tokenizer: every word carries its space, and decoding drops the first one."""

    def decode(ids: Sequence[int]) -> str:
        return "".join(f" {i}" for i in ids).removeprefix(" ")

    detokenizer = Detokenizer(decode, prompt=range(100))
    for token in (7, 8):
        detokenizer.push(token)
    assert detokenizer.text == " 7 8"


def test_tokens_without_text_are_not_decoded_again_and_again() -> None:
    lengths = []

    def decode(ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return ""

    detokenizer = Detokenizer(decode)
    for token in range(1000):
        detokenizer.push(token)
    assert max(lengths) <= 32


def test_bytes_that_never_become_text_are_not_held_forever() -> None:
    detokenizer = Detokenizer(decode_bytes)
    for _ in range(40):
        detokenizer.push(0xFF)
    assert len(detokenizer.text) >= 16


@given(st.text("ab.", max_size=20), st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3))
def test_stop_strings_as_a_search_of_the_whole_text(text: str, stops: list[str]) -> None:
    """However the text grows: the first stop is found, and nothing of it was ever shown."""
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


@pytest.mark.parametrize(("text", "safe"), [("abc", 3), ("abEN", 2), ("abE", 2), ("EN", 0)])
def test_safe_length(text: str, safe: int) -> None:
    assert StopStrings(["END"]).safe_length(text) == safe
