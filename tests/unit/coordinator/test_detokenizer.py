"""Half characters stay inside; stop strings are found and their beginnings held back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from coordinator.answers.detokenizer import Detokenizer, StopStrings
from tests.support.models.tokenizers import decode_bytes


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


@pytest.mark.parametrize(("text", "safe"), [("abc", 3), ("abEN", 2), ("abE", 2), ("EN", 0)])
def test_safe_length(text: str, safe: int) -> None:
    assert StopStrings(["END"]).safe_length(text) == safe
