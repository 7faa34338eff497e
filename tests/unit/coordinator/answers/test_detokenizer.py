"""Characters come whole and at once, whatever tokens they are made of; stop strings are found and
their beginnings held back."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from coordinator.answers.detokenizer import Detokenizer, StopStrings
from coordinator.answers.token_pieces import BROKEN, NO_PIECES, kind_of
from tests.support.models import tokenizers
from tests.support.models.tokenizers import byte_pieces, pieces_of

THUMB = "👍"


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made: Tokenizer = getattr(tokenizers, request.param)()
    return made


def bytes_in(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of the bytes of `text`, one token for each."""
    is_level = tokenizer.token_to_id("<0x00>") is None
    first = 0 if is_level else int(tokenizer.token_to_id("<0x00>"))
    return [first + byte for byte in text.encode()]


def test_text_comes_as_soon_as_it_is_whole() -> None:
    detokenizer = Detokenizer(byte_pieces())
    seen = []
    for byte in "a€b".encode():
        detokenizer.push(byte)
        seen.append(detokenizer.text)
    assert seen == ["a", "a", "a", "a€", "a€b"]


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    detokenizer = Detokenizer(byte_pieces())
    for byte in "ok€".encode()[:-1]:
        detokenizer.push(byte)
    assert detokenizer.text == "ok"
    assert detokenizer.finish() == BROKEN
    assert detokenizer.text == "ok" + BROKEN


def test_a_character_that_the_prompt_has_too_comes_whole(tokenizer: Tokenizer) -> None:
    thumb = bytes_in(tokenizer, THUMB)
    detokenizer = Detokenizer(pieces_of(tokenizer), [*bytes_in(tokenizer, "a"), *thumb])
    news = [detokenizer.push(token) for token in thumb * 2]
    assert news == ["", "", "", THUMB] * 2
    assert detokenizer.finish() == ""


def test_a_stop_string_of_several_tokens_is_there_with_its_last_one(tokenizer: Tokenizer) -> None:
    detokenizer, stops = Detokenizer(pieces_of(tokenizer)), StopStrings([THUMB])
    tokens = bytes_in(tokenizer, f"a{THUMB}b")
    found = []
    for token in tokens:
        detokenizer.push(token)
        found.append(stops.find(detokenizer.text))
    assert found == [None] * 4 + [(1, THUMB)] + [None]


def test_a_prompt_that_ends_inside_a_character_loses_nothing_of_the_answer(
    tokenizer: Tokenizer,
) -> None:
    thumb = bytes_in(tokenizer, THUMB)
    for num_given in (1, 2, 3):
        prompt, rest = thumb[:num_given], thumb[num_given:]
        detokenizer = Detokenizer(pieces_of(tokenizer), prompt)
        for token in rest + thumb:
            detokenizer.push(token)
        assert detokenizer.text == THUMB * 2
        other = Detokenizer(pieces_of(tokenizer), prompt)
        assert other.push(bytes_in(tokenizer, "a")[0]) == "a", "the prompt's bytes are the prompt's"


def test_special_tokens_within_a_character_are_no_part_of_it(tokenizer: Tokenizer) -> None:
    """Skipped ones are as if they were not there, as for the library; shown ones break it."""
    special = tokenizer.token_to_id(tokenizers.SPECIAL)
    first, *others = bytes_in(tokenizer, "ö")
    for skips, text in ((True, "ö"), (False, f"{BROKEN}{tokenizers.SPECIAL}{BROKEN}")):
        detokenizer = Detokenizer(pieces_of(tokenizer, skips))
        for token in [first, special, *others]:
            detokenizer.push(token)
        detokenizer.finish()
        assert detokenizer.text == text
        assert text == tokenizer.decode([first, special, *others], skip_special_tokens=skips)


def test_the_first_word_has_no_space_and_the_first_of_an_answer_has_one() -> None:
    tokenizer = tokenizers.byte_fallback()
    word, special = tokenizer.token_to_id("▁he"), tokenizer.token_to_id(tokenizers.SPECIAL)
    for prompt, text in (([], "he he"), ([special], "he he"), ([word], " he he")):
        detokenizer = Detokenizer(pieces_of(tokenizer, skip_special_tokens=True), prompt)
        assert detokenizer.push(word) + detokenizer.push(word) == text


def test_each_token_is_decoded_once() -> None:
    tokenizer = tokenizers.byte_fallback()
    pieces = pieces_of(tokenizer)
    lengths = []
    decode = pieces._decode
    pieces._decode = lambda ids: (lengths.append(len(ids)), decode(ids))[1]  # type: ignore[func-returns-value]
    word = tokenizer.token_to_id("▁he")
    for _ in range(3):
        detokenizer = Detokenizer(pieces, [word])
        for _ in range(1000):
            detokenizer.push(word)
    assert 0 < len(lengths) < 20 and max(lengths) <= 2


def test_bytes_that_never_become_text_are_not_held() -> None:
    detokenizer = Detokenizer(byte_pieces())
    assert [detokenizer.push(0xFF) for _ in range(40)] == [BROKEN] * 40


def test_ids_without_text_add_none() -> None:
    assert Detokenizer(NO_PIECES).push(5) == ""
    assert Detokenizer(pieces_of(tokenizers.byte_level())).push(10**6) == ""


@pytest.mark.parametrize(
    ("decoder", "kind"),
    [
        (None, "text"),
        ({"type": "ByteLevel"}, "byte-level"),
        ({"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}, "byte-fallback"),
        ({"type": "WordPiece"}, "text"),
        ({"type": "BPEDecoder"}, None),
        ({"type": "CTC"}, None),
        ({"type": "Strip", "content": " ", "start": 0, "stop": 1}, None),
    ],
)
def test_decoders_that_look_ahead_are_known(decoder: dict[str, object], kind: str | None) -> None:
    assert kind_of(decoder) == kind


@pytest.mark.parametrize(("text", "safe"), [("abc", 3), ("abEN", 2), ("abE", 2), ("EN", 0)])
def test_safe_length(text: str, safe: int) -> None:
    assert StopStrings(["END"]).safe_length(text) == safe
