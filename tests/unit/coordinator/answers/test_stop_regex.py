"""Patterns that end an answer: found as early as possible, held back, in linear time."""

from __future__ import annotations

import pytest

from coordinator.answers.stop_regex import MAX_STATES, BadStopRegex, StopRegexes


def test_a_text_may_come_in_pieces_of_any_size() -> None:
    regexes = StopRegexes(["END[0-9]+;", "never"])
    assert regexes.find("so EN") is None and regexes.safe_length("so EN") == 3
    assert regexes.find("so END12") is None
    assert regexes.find("so END12; more") == (3, 9, "END[0-9]+;")


@pytest.mark.parametrize("pattern", [r"[.!?]\s*$", r"[.!?]\s*\Z"])
def test_a_pattern_may_end_with_the_end_of_the_text_so_far(pattern: str) -> None:
    assert StopRegexes([pattern]).find("It is. So") == (5, 6, pattern)
    assert StopRegexes([pattern]).find("It is so") is None


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
        ("a$b", "border"),
        ("a$|b", "border"),
        ("a*$", "empty text"),
        (r"\bfoo", "border"),
        ("(?m)^a", "border"),
        ("a*", "empty text"),
        ("a{0,3}", "empty text"),
        ("a{9999}", "too large"),
        ("[" + "".join(f"{chr(i)}-{chr(i + 1)}" for i in range(1000, 3000, 4)) + "]{9}b", "large"),
        ("((((a{9}){9}){9}){9})", "too large"),
        ("(" * 900 + "a" + ")" * 900, "nested too deeply|no regular expression"),
    ],
)
def test_what_cannot_be_found_in_a_growing_text_is_refused(pattern: str, word: str) -> None:
    with pytest.raises(BadStopRegex, match=word):
        StopRegexes([pattern])
