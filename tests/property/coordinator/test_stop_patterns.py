"""Patterns that end an answer, beside Python's own engine, over texts that grow."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from coordinator.answers.stop_regex import StopRegexes

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
