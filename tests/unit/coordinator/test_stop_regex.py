"""Patterns that end an answer: found as early as possible, held back, in linear time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.answers.stop_regex import MAX_STATES, BadStopRegex, StopRegexes

PATTERNS = (
    r"\n\n+",
    r"\d{2,3}x",
    "(a|aa)*b",
    "a.*b",
    "^ab",
    r"\Aa",
    "(?i)Ab[cd]",
    "[^a]c",
    "(ab|b)+?c",
    "a?b{2}",
    "x|ab",
    r"(?s:a.b)",
    r"[\w-]+\s",
    r"(?a)\w\D",
)


def expected(pattern: str, text: str) -> tuple[int, int, str] | None:
    """The match that ends first and, among those, begins first, by Python's own engine."""
    compiled = re.compile(pattern)
    for end in range(1, len(text) + 1):
        for begin in range(end):
            if begin and re.search(r"\^|\\A", re.sub(r"\[.*?\]", "", pattern)):
                break
            if compiled.fullmatch(text, begin, end):
                return begin, end, pattern
    return None


@given(st.sampled_from(PATTERNS), st.text("abcABx\n12 -é", max_size=12))
def test_the_first_match_is_the_one_of_the_re_module(pattern: str, text: str) -> None:
    regexes, found, safe = StopRegexes([pattern]), None, 0
    for end in range(1, len(text) + 1):
        found = regexes.find(text[:end])
        if found is not None:
            break
        assert regexes.safe_length(text[:end]) >= safe, "what was shown stays shown"
        safe = regexes.safe_length(text[:end])
    assert found == expected(pattern, text)
    assert found is None or safe <= found[0], "nothing of the match was shown"


def test_a_text_may_come_in_pieces_of_any_size() -> None:
    regexes = StopRegexes(["END[0-9]+;", "never"])
    assert regexes.find("so EN") is None and regexes.safe_length("so EN") == 3
    assert regexes.find("so END12") is None
    assert regexes.find("so END12; more") == (3, 9, "END[0-9]+;")


def test_a_pattern_that_freezes_other_engines_takes_a_step_per_character() -> None:
    regexes = StopRegexes(["(a+)+c", "(a|a)*d", "(.*)*e"])
    steps = 0
    real = regexes._step

    def counted(character: str, position: int) -> tuple[int, int, str] | None:
        nonlocal steps
        steps += 1
        return real(character, position)

    regexes._step = counted  # type: ignore[method-assign]
    assert regexes.find("a" * 2000) is None and steps == 2000
    assert len(regexes._alive) <= MAX_STATES


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        ("(", "no regular expression"),
        ("(?=a)b", "lookaround"),
        ("(?<!a)b", "lookaround"),
        (r"(a)\1", "backreference"),
        ("a$", "border"),
        (r"\bfoo", "border"),
        ("(?m)^a", "border"),
        ("a*", "empty text"),
        ("a{0,3}", "empty text"),
        ("a{9999}", "too large"),
        ("((((a{9}){9}){9}){9})", "too large"),
        ("(" * 900 + "a" + ")" * 900, "nested too deeply|no regular expression"),
    ],
)
def test_what_cannot_be_found_in_a_growing_text_is_refused(pattern: str, word: str) -> None:
    with pytest.raises(BadStopRegex, match=word):
        StopRegexes([pattern])
