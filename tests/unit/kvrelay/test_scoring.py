"""A choice is scored by its own tokens, wherever the prefix ends among them."""

from __future__ import annotations

import pytest

from kvrelay.answers import TokenLogprob
from kvrelay.errors import MalformedAnswer
from kvrelay.language.backend import ChoiceScore, likeliest
from kvrelay.language.scoring import first_scored, score_of


def entries(*texts: str, first_is_null: bool = False) -> list[TokenLogprob]:
    """Tokens with logprobs -1, -2, -3, … in this order."""
    return [
        TokenLogprob(None if first_is_null and i == 0 else -1.0 - i, i, text)
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("first_is_null", [False, True])
def test_tokens_of_the_prefix_are_left_out(first_is_null: bool) -> None:
    told = entries(" dog", " is", " Bra", "mo", first_is_null=first_is_null)
    assert score_of(4, " Bramo", told) == ChoiceScore(" Bramo", -3.5, 2)


@pytest.mark.parametrize("first_is_null", [False, True])
def test_a_token_that_covers_the_end_of_the_prefix_counts_with_the_choice(
    first_is_null: bool,
) -> None:
    told = entries(" dog", " isn", "'t", first_is_null=first_is_null)
    assert score_of(4, "n't", told) == ChoiceScore("n't", -2.5, 2)


def test_a_choice_that_repeats_the_prefix_is_not_taken_for_it() -> None:
    told = entries("a", "a", "a", first_is_null=True)
    assert score_of(2, "a", told) == ChoiceScore("a", -3.0, 1)
    assert score_of(1, "a", entries("a", "a", first_is_null=True)).mean_logprob == -2.0
    assert score_of(1, "a", entries("<bos>", "a", first_is_null=True)).mean_logprob == -2.0


def test_parts_of_characters_are_scored_too() -> None:
    told = entries(" dog", " is", "\ufffd", "\ufffd", "!")
    assert score_of(4, "é!", told) == ChoiceScore("é!", -4.0, 3)


def test_the_mean_decides_not_the_sum() -> None:
    scores = [ChoiceScore("long", -0.5, 8), ChoiceScore("short", -0.6, 1)]
    assert likeliest(scores).choice == "long"
    assert likeliest([ChoiceScore("a", -1.0, 1), ChoiceScore("b", -1.0, 1)]).choice == "a"
    assert first_scored(10) == 8 and first_scored(1) == 0


def test_a_server_without_logprobs_is_told() -> None:
    with pytest.raises(MalformedAnswer, match="logprob_start_len"):
        score_of(1, "y", [])
