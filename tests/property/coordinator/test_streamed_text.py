"""Any tokens, streamed one by one: whole characters, as the tokenizer itself decodes them."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from coordinator.answers.detokenizer import Detokenizer, StopStrings
from coordinator.answers.token_pieces import BROKEN, ONE_BYTE
from tests.support.models import tokenizers
from tests.support.models.tokenizers import byte_pieces, pieces_of

BYTE_LEVEL, BYTE_FALLBACK = tokenizers.byte_level(), tokenizers.byte_fallback()
OTHERS = [tokenizers.word_piece(), tokenizers.metaspace(), tokenizers.words()]
LONGEST_WAIT = 3
"""Bytes that are held at most: a character has four."""


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any ids, among them some that no token has; characters of several bytes are frequent."""
    any_id = st.integers(0, tokenizer.get_vocab_size() + 1)
    texts = st.text("ö日👍 a", min_size=1, max_size=3)
    encoded = texts.map(lambda text: tokenizer.encode(text).ids)
    parts = st.one_of(any_id.map(lambda one: [one]), encoded)
    return st.lists(parts, max_size=8).map(lambda lists: [one for ids in lists for one in ids])


def streamed(tokenizer: Tokenizer, prompt: list[int], answer: list[int], skips: bool) -> str:
    detokenizer = Detokenizer(pieces_of(tokenizer, skips), prompt)
    news = [detokenizer.push(token) for token in answer]
    assert detokenizer.text == "".join(news), "what was shown stays"
    news.append(detokenizer.finish())
    assert detokenizer.text == "".join(news)
    return detokenizer.text


@given(ids_of(BYTE_LEVEL), ids_of(BYTE_LEVEL), st.booleans())
def test_byte_level_text_is_the_end_of_the_whole_text(
    prompt: list[int], answer: list[int], skips: bool
) -> None:
    before = BYTE_LEVEL.decode(prompt, skip_special_tokens=skips)
    whole = BYTE_LEVEL.decode(prompt + answer, skip_special_tokens=skips)
    text = streamed(BYTE_LEVEL, prompt, answer, skips)
    completes = before.endswith(BROKEN) and not whole.startswith(before)
    assert (before[:-1] if completes else before) + text == whole


@given(ids_of(BYTE_FALLBACK), ids_of(BYTE_FALLBACK), st.booleans())
def test_byte_fallback_text_has_every_whole_character(
    prompt: list[int], answer: list[int], skips: bool
) -> None:
    """Where a run of bytes is no UTF-8, the library gives up all of it, characters too; no stream
    could take these back."""
    before, whole = by_runs(prompt, skips), by_runs(prompt + answer, skips)
    text = streamed(BYTE_FALLBACK, prompt, answer, skips)
    # As many U+FFFD at the end of the prompt's text as bytes of a character that is whole now.
    num_completed = next(n for n in range(4) if whole.startswith(before[: len(before) - n]))
    assert before.endswith(BROKEN * num_completed)
    assert before[: len(before) - num_completed] + text == whole


def by_runs(ids: list[int], skips: bool) -> str:
    """Decodes as the library does, but for runs of bytes that are no UTF-8: there, whole characters
    stay, and every other byte is U+FFFD."""
    names = [BYTE_FALLBACK.id_to_token(one) for one in ids]
    names = [n for n in names if n and not (skips and n == tokenizers.SPECIAL)]
    text = ""
    for is_bytes, run in groupby(names, lambda name: ONE_BYTE.fullmatch(name) is not None):
        if is_bytes:
            text += characters_of(bytes.fromhex("".join(name[3:5] for name in run)))
        else:
            one_byte = [bytes.fromhex(n[3:5]).decode() if n.startswith("<0x") else n for n in run]
            text += "".join(one_byte).replace("▁", " ")
    return text.removeprefix(" ")


def characters_of(raw: bytes) -> str:
    for size in range(1, 5):
        try:
            return raw[:size].decode() + characters_of(raw[size:]) if raw else ""
        except UnicodeDecodeError:
            continue
    return BROKEN + characters_of(raw[1:])


@given(ids_of(BYTE_FALLBACK), st.booleans())
def test_the_rule_for_runs_is_the_librarys_where_they_are_utf8(ids: list[int], skips: bool) -> None:
    text = by_runs(ids, skips)
    if BROKEN not in text:
        assert text == BYTE_FALLBACK.decode(ids, skip_special_tokens=skips)


@pytest.mark.parametrize("number", range(len(OTHERS)))
@given(data=st.data(), skips=st.booleans())
def test_other_texts_are_the_end_of_the_whole_text(
    number: int, data: st.DataObject, skips: bool
) -> None:
    tokenizer = OTHERS[number]
    any_ids = st.lists(st.integers(0, tokenizer.get_vocab_size() + 1), max_size=8)
    prompt, answer = data.draw(any_ids), data.draw(any_ids)
    before = tokenizer.decode(prompt, skip_special_tokens=skips)
    whole = tokenizer.decode(prompt + answer, skip_special_tokens=skips)
    assert before + streamed(tokenizer, prompt, answer, skips) == whole


@given(st.binary(max_size=30))
def test_bytes_are_held_only_while_they_may_become_a_character(raw: bytes) -> None:
    detokenizer = Detokenizer(byte_pieces())
    for end, byte in enumerate(raw, start=1):
        detokenizer.push(byte)
        whole = raw[:end].decode(errors="replace")
        assert whole.startswith(detokenizer.text)
        held = whole.removeprefix(detokenizer.text)
        assert held in ("", BROKEN)
        if held:  # then some bytes that may follow make a character of it
            tail = raw[max(0, end - LONGEST_WAIT) : end]
            assert any(could_go_on(tail[i:]) for i in range(len(tail)))
    detokenizer.finish()
    assert detokenizer.text == raw.decode(errors="replace")


def could_go_on(tail: bytes) -> bool:
    """Returns whether `tail` is the beginning of a character that lacks some bytes."""
    ends = [bytes([second, *[0x80] * n]) for second in (0x80, 0xBF, 0x90) for n in range(3)]
    for end in ends:
        try:
            if len((tail + end).decode()) == 1:
                return True
        except UnicodeDecodeError:
            continue
    return False


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
