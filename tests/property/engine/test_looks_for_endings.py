"""Endings are looked for now and then, and yet no answer misses an end that it could reach."""

from __future__ import annotations

import json
import re
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.batches.sequence import Sampled
from engine.sampling.grammar_endings import EndingSearch
from engine.sampling.grammar_masks import TokenMasks
from engine.sampling.grammar_state import (
    LOOK_INTERVAL,
    MAX_GROWTH,
    MIN_WATCHED,
    GrammarState,
    tokens_until_look,
)
from engine.sampling.grammar_words import MAX_WORDS, last_words
from protocol.sampling import Sampling
from tests.support.models.grammars import END, compiler, draw, matcher_of, tokenizer

CLOSINGS = (")", "7)", "7Z)")
"""What closes a bracket, one token a byte: with each that is opened an ending grows by these."""
MAX_GROWTH_NEAR_THE_END = 3


def brackets(closing: str) -> str:
    assert len(tokenizer().tokenize_str(closing)) == len(closing) <= MAX_GROWTH_NEAR_THE_END
    return compiler().compile_now("ebnf", f'root ::= "(" root* "{closing}"')


@given(num_spare=st.integers(0, 10**6), ending=st.integers(0, 10**4))
def test_an_ending_still_fits_when_it_is_looked_for_again(num_spare: int, ending: int) -> None:
    """Or when every token begins to be watched, if that comes first."""
    num_left = num_spare + MIN_WATCHED + ending
    interval = tokens_until_look(num_spare)
    growth = MAX_GROWTH if interval > LOOK_INTERVAL else MAX_GROWTH_NEAR_THE_END
    num_taken = min(interval, num_spare)
    assert ending + growth * num_taken < num_left - num_taken, "an end token has room, too"


@settings(max_examples=30, deadline=None)
@given(closing=st.sampled_from(CLOSINGS), max_new_tokens=st.integers(8, 500))
@example(closing="7)", max_new_tokens=474)  # the ending is longer than a first look would go
@example(closing="7Z)", max_new_tokens=364)  # every token is watched when nothing is to spare
def test_an_answer_that_only_opens_brackets_closes_them_all(
    closing: str, max_new_tokens: int
) -> None:
    (opening,) = tokenizer().tokenize_str("(")
    answer = draw(brackets(closing), max_new_tokens, seed=1, favourite=opening)
    assert answer.has_ended
    depth = answer.text.count("(")
    assert answer.text == "(" * depth + closing * depth
    assert len(answer.tokens) > max_new_tokens - MIN_WATCHED, "it ends where it has to"


@settings(max_examples=30, deadline=None)
@given(data=st.data(), max_new_tokens=st.integers(150, 400))
def test_a_state_that_goes_back_looks_as_one_that_never_was_ahead(
    data: st.DataObject, max_new_tokens: int
) -> None:
    """A step that was started ahead may be in vain, wherever the last look was."""
    (opening,) = tokenizer().tokenize_str("(")
    how = Sampling(max_new_tokens=max_new_tokens, end_token_ids=(END,))
    make = partial(GrammarState, sampling=how, endings=EndingSearch(tokenizer()), num_at_least=1)
    matcher = matcher_of(brackets(")"))
    length = data.draw(st.integers(1, max_new_tokens // 2 - 1))
    kept = data.draw(st.integers(0, length))
    (closing,) = tokenizer().tokenize_str(")")
    back, straight = make(matcher.deep_copy()), make(matcher.deep_copy())
    back.feed(0, [opening] * length)
    rest = [opening] * 20 + [closing] * 10 if kept else [opening] * 20
    for state, begin, tokens in (
        (back, kept, rest),
        (straight, 0, [opening] * kept + rest),
    ):
        state.feed(begin, tokens)
    assert back.tokens == straight.tokens
    assert (back._ending, back._num_watched) == (straight._ending, straight._num_watched)
    assert (back.may_replace, back._look_from) == (straight.may_replace, straight._look_from)


@given(seed=st.integers(0, 1000), limit=st.integers(0, 70))
def test_rows_below_a_limit_allow_fewer_tokens(seed: int, limit: int) -> None:
    rng = np.random.default_rng(seed)
    flags = rng.random((4, 64)) < rng.random((4, 1))
    bits = np.packbits(flags, axis=1, bitorder="little").view(np.uint32)
    rows = [0, 2, 3, 7]
    expected = {row for row, allowed in zip(rows, flags, strict=True) if allowed.sum() < limit}
    assert TokenMasks(rows, bits).rows_below(limit) == expected


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 60))
def test_a_token_that_is_settled_is_looked_behind_when_the_next_is_fed(length: int) -> None:
    """Settling is what a step waits for, and feeding is beside its forward pass; so a state that
    was settled all along is as one that was fed."""
    (opening,) = tokenizer().tokenize_str("(")
    how = Sampling(max_new_tokens=400, end_token_ids=(END,))
    make = partial(GrammarState, sampling=how, endings=EndingSearch(tokenizer()), num_at_least=1)
    matcher = matcher_of(brackets(")"))
    settled, fed = make(matcher.deep_copy()), make(matcher.deep_copy())
    for position in range(length):
        settled.feed(0, [opening] * position)
        assert Sampled(settled.settle(position, opening, True)).tokens[0] == opening
    fed.feed(0, [opening] * length)
    settled.feed(0, [opening] * length)
    assert settled.tokens == fed.tokens
    assert (settled._ending, settled._look_from) == (fed._ending, fed._look_from)
    assert fed._look_from > length


@pytest.mark.parametrize(
    "pattern",
    [
        r"[\w.-]+@[\w.-]+\.com",
        r"\S+@\S+\.org",
        r"(?s).*</answer>",
        r".*(END|STOP)!",
        r"[a-z]+(foo|bar)[a-z]*baz",
        "[^z]*éé",
    ],
)
def test_an_ending_that_could_be_more_of_what_is_before_it_is_found(pattern: str) -> None:
    """Each token of `.com` may be one more of `[a-z.]*`, too: only the words of the grammar lead
    to its end."""
    grammar = compiler().compile_now("regex", pattern)
    for seed in range(3):
        answer = draw(grammar, 40, seed)
        assert answer.has_ended and re.fullmatch(pattern, answer.text), answer.text


@pytest.mark.parametrize("is_free", [True, False])
def test_free_text_is_cut_and_what_a_grammar_bounds_is_ended(is_free: bool) -> None:
    """The end token would say that free text is whole, which nobody knows."""
    tag = {"type": "tag", "begin": "<a>", "content": {"type": "any_text"}, "end": "</a>"}
    form = {"type": "triggered_tags", "tags": [tag], "triggers": ["<a>"]}
    source = json.dumps({"format": form}) if is_free else "[a-z ]*"
    grammar = compiler().compile_now("structural_tag" if is_free else "regex", source)
    (favourite,) = tokenizer().tokenize_str("a")
    answer = draw(grammar, 9, seed=1, favourite=favourite)
    assert answer.text == "a" * (9 if is_free else 8) and answer.has_ended != is_free


def test_the_words_of_a_grammar_are_those_of_its_regular_expressions() -> None:
    regex = compiler().compile_now("regex", r"(a[b-d]{2}|x{3,}éy)\.com|\d+ \{end")
    assert last_words(regex)[:4] == (b" {end", b".com", "éy".encode(), b"x")
    schema = {"properties": {"word": {"pattern": r"^go\.to$"}}, "required": ["word"]}
    written = compiler().compile_now("json_schema", json.dumps(schema))
    assert last_words(written) == (b"go.to",)
    assert len(last_words(compiler().compile_now("regex", "1.2.3.4.5.6.7.8.9." * 9))) <= MAX_WORDS
