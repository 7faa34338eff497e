"""Masks, forced tokens and endings, as the states of sequences give them."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.grammars.kinds import GrammarKind
from engine.batches.sequence import UNKNOWN, Sampled, Slice
from engine.errors import RequestFailed
from engine.sampling.grammar_endings import EndingSearch
from engine.sampling.grammar_masks import TokenMasks
from engine.sampling.grammars import MAX_COMPILED, Grammars
from engine.sampling.sampler import sample
from protocol.sampling import Sampling
from tests.support.models.grammars import (
    END,
    PROMPT,
    allowed,
    compiler,
    draw,
    grammars,
    matcher_of,
    tokenizer,
    tokenizer_json,
)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}},
        "inner": {
            "type": "object",
            "properties": {"deep": {"type": "array"}},
            "required": ["deep"],
        },
    },
    "required": ["name", "age"],
}
SOURCES: dict[str, tuple[GrammarKind, str]] = {
    "tutorial": ("regex", r'{ "name": "[^"]+", "age": \d+, "job": "[^"]+", "hobby": \[.*\] }'),
    "person": ("json_schema", json.dumps(PERSON)),
    "any json": ("json_schema", "{}"),
    "words": ("regex", r"(one|two|three)( (one|two|three)){0,9}\."),
    "brackets": ("ebnf", 'root ::= "(" root* ")"'),
    "forced": ("regex", r"(begin|end) of the long fixed text: \d; and more of it: [ab]"),
}


def grammar_of(name: str) -> str:
    return compiler().compile_now(*SOURCES[name])


def least_tokens(name: str) -> int:
    """Returns in how many tokens, end included, the search finds an end."""
    search, matcher = EndingSearch(tokenizer()), matcher_of(grammar_of(name))
    text = search.find(matcher)
    assert text is not None
    return len(search.tokens_after(matcher, text) or []) + 1


def is_valid(name: str, text: str) -> bool:
    kind, source = SOURCES[name]
    if kind == "regex":
        return re.fullmatch(source, text) is not None
    if kind == "json_schema":
        jsonschema.validate(json.loads(text), json.loads(source))
        return True
    return bool(re.fullmatch(r"[()]+", text)) and text.count("(") == text.count(")")


def part_of(grammar: str, answer: list[int], sequence_id: int, **sampling: Any) -> Slice:
    """The slice that samples behind a whole answer so far."""
    how = Sampling(grammar=grammar, prompt_length=len(PROMPT), end_token_ids=(END,), **sampling)
    tokens = [*PROMPT, *answer]
    return Slice(tokens[-1:], len(tokens) - 1, [], how, None, sequence_id, tokens[:-1])


def mask_of(part: Slice, of: Grammars | None = None) -> np.ndarray:
    step = (grammars() if of is None else of).begin([part])
    assert step is not None
    return step.finish(()).bits[0]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SOURCES)), spare=st.integers(0, 60), seed=st.integers(0, 10**6))
def test_an_answer_is_whole_if_its_end_has_room(name: str, spare: int, seed: int) -> None:
    """Tokens are drawn at random, which no model would close by itself."""
    answer = draw(grammar_of(name), least_tokens(name) + spare, seed)
    assert answer.has_ended, (name, answer.text)
    assert is_valid(name, answer.text)


def test_an_answer_without_room_for_an_end_goes_on_to_its_length() -> None:
    answer = draw(grammar_of("tutorial"), 10, seed=1)
    assert len(answer.tokens) == 10
    assert not answer.has_ended


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(SOURCES)), seed=st.integers(0, 10**6))
def test_an_answer_that_is_taken_up_again_goes_on_alike(
    data: st.DataObject, name: str, seed: int
) -> None:
    """As after a retry: all its tokens are fed at once, up to where some step ended."""
    num_tokens = least_tokens(name) + 30
    straight = draw(grammar_of(name), num_tokens, seed)
    cut = data.draw(st.sampled_from(straight.boundaries))
    again = draw(grammar_of(name), num_tokens, seed, before=straight.tokens[:cut])
    assert again.tokens == straight.tokens


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_masks_are_what_a_matcher_takes_token_by_token(name: str) -> None:
    """Brute force over the vocabulary, at each place where some answer had a token drawn."""
    answer = draw(grammar_of(name), 60, seed=4)
    for cut in answer.boundaries[:8]:
        before = answer.tokens[:cut]
        matcher = matcher_of(grammar_of(name)).deep_copy()
        assert matcher.consume_tokens(before)
        text = [t for t in range(2048) if matcher.validate_tokens([t]) == 1]
        assert not any(map(tokenizer().is_special_token, text))
        ends = [END] if matcher.is_accepting() else []
        assert allowed(mask_of(part_of(grammar_of(name), before, 1))) == sorted([*text, *ends])
        grammars().end(1)


def test_forced_tokens_are_all_that_single_steps_would_allow() -> None:
    grammar = grammar_of("forced")
    answer = draw(grammar, 60, seed=2)
    assert len(answer.boundaries) < len(answer.tokens) / 2, "several tokens a step"
    text = b""
    for i, token in enumerate(answer.tokens[:-1]):
        matcher = matcher_of(grammar).deep_copy()
        assert matcher.consume_tokens(answer.tokens[:i])
        assert matcher.validate_tokens([token]) == 1
        if i not in answer.boundaries:
            assert matcher.compute_ff_bytes().startswith(tokenizer().decode_bytes([token]))
        text += tokenizer().decode_bytes([token])
    assert is_valid("forced", text.decode())


def test_whoever_wants_logprobs_gets_one_token_a_step_but_at_the_end() -> None:
    grammar = compiler().compile_now("regex", "[ab]{3}fixed and long[cd]")
    step_sizes = []
    for num_top in (-1, 2):
        answer = draw(grammar, 60, seed=3, num_top_logprobs=num_top)
        assert re.fullmatch("[ab]{3}fixed and long[cd]", answer.text)
        step_sizes.append(len(answer.tokens) - len(answer.boundaries))
    assert step_sizes[0] > 0 and step_sizes[1] == 0


def test_logprobs_of_an_ending_are_those_of_certain_tokens() -> None:
    grammar = compiler().compile_now("regex", 'a[^"]*"')
    (a,) = tokenizer().tokenize_str("a")
    how = {"max_new_tokens": 3, "num_top_logprobs": 1, "logprob_token_ids": (5,)}
    mask_of(part_of(grammar, [a], 78, **how))
    sampled = grammars().settle(part_of(grammar, [a], 78, **how), Sampled((a,), ()))
    grammars().end(78)
    (b,) = tokenizer().tokenize_str('"')
    assert sampled.tokens == (b, END)
    assert [(each.chosen, each.top) for each in sampled.logprobs] == [
        (0.0, [(b, 0.0)]),
        (0.0, [(END, 0.0)]),
    ]
    assert all(each.wanted[0] < -1e38 for each in sampled.logprobs)


def test_ends_wait_for_the_least_length_unless_only_they_are_left() -> None:
    grammar = compiler().compile_now("regex", "a{1,3}")
    (a,) = tokenizer().tokenize_str("a")
    early = part_of(grammar, [a], 2, min_new_tokens=5)
    assert END not in allowed(mask_of(early))
    grammars().end(2)
    full = part_of(grammar, [a, a, a], 3, min_new_tokens=5)
    assert allowed(mask_of(full)) == [END]
    grammars().end(3)


def test_a_stop_token_ends_an_answer_only_where_the_grammar_may_end() -> None:
    (a,) = tokenizer().tokenize_str("a")
    (x,) = tokenizer().tokenize_str("x")
    grammar = compiler().compile_now("regex", "a?[ax]?ab")
    how = Sampling(grammar=grammar, prompt_length=3, end_token_ids=(END, x))
    part = Slice(PROMPT, 0, [], how, None, 4)
    assert a in allowed(mask_of(part)) and x not in allowed(mask_of(part))
    grammars().end(4)
    only = compiler().compile_now("regex", "xyz")
    part = Slice(PROMPT, 0, [], msgspec.structs.replace(how, grammar=only), None, 5)
    assert x in allowed(mask_of(part)), "nothing else is allowed"
    grammars().end(5)


def test_an_end_token_that_only_the_model_has_ends_an_answer() -> None:
    """The model's vocabulary is larger than the tokenizer's."""
    beyond = tokenizer().vocab_size + 100
    wide = Grammars(tokenizer_json, beyond + 1)
    grammar = compiler().compile_now("regex", "a{0,3}")
    how = Sampling(grammar=grammar, prompt_length=3, end_token_ids=(beyond,))
    part = Slice(PROMPT, 0, [], how, None, 1)
    assert beyond in allowed(mask_of(part, wide))


def test_who_follows_a_row_without_numbers_harms_nobody() -> None:
    """What it samples is nobody's: its request has failed."""
    fresh = Grammars(tokenizer_json)
    grammar = compiler().compile_now("regex", "a{1,9}")
    before = [part_of(grammar, [], number) for number in (1, 2)]
    first = fresh.begin(before)
    assert first is not None
    first.finish(())
    (a,) = tokenizer().tokenize_str("a")
    ahead = [
        Slice([UNKNOWN], part.end, [], part.sampling, row, part.sequence_id)
        for row, part in enumerate(before)
    ]
    step = fresh.begin(ahead)
    assert step is not None
    masks = step.finish([Sampled((), error="no numbers"), Sampled((a,))])
    assert a in allowed(masks.bits[1])


def test_a_step_that_is_computed_again_has_the_same_mask() -> None:
    """Also when a step behind it was started ahead, in vain."""
    grammar = grammar_of("words")
    answer = draw(grammar, 80, seed=9).tokens
    for cut in (1, 2, len(answer) - 2):
        part = part_of(grammar, answer[:cut], 6)
        first = mask_of(part).copy()
        mask_of(part_of(grammar, answer[: cut + 1], 6))
        assert (mask_of(part) == first).all()
        assert (mask_of(part_of(grammar, answer[: cut + 1], 6)) != first).any()
        grammars().end(6)


def test_a_row_follows_a_token_that_the_step_before_samples() -> None:
    grammar = grammar_of("words")
    answer = draw(grammar, 60, seed=5).tokens
    before = part_of(grammar, answer[:2], 7)
    mask_of(before)
    ahead = Slice([UNKNOWN], before.end, [], before.sampling, follows=1, sequence_id=7)
    step = grammars().begin([ahead])
    assert step is not None and step.follows
    bits = step.finish([None, Sampled((answer[2],))]).bits[0]
    grammars().end(7)
    assert (bits == mask_of(part_of(grammar, answer[:3], 8))).all()
    grammars().end(8)


def test_what_a_grammar_costs_too_much_fails_the_request() -> None:
    matchers = Grammars(tokenizer_json)
    grammar = compiler().compile_now("regex", "((a{1000}){1000}b){1000}")
    (a,) = tokenizer().tokenize_str("a")
    with pytest.raises(RequestFailed, match="grammar"):
        for i in range(8):
            mask_of(part_of(grammar, [a] * i, 1), matchers)
    assert len(matchers) == 1
    matchers.end(1)
    assert len(matchers) == 0
    assert allowed(mask_of(part_of(grammar_of("words"), [], 2), matchers))


def test_a_model_without_a_tokenizer_fails_only_what_needs_it() -> None:
    def missing() -> str:
        raise OSError("no such file")

    with pytest.raises(RequestFailed, match=r"tokenizer\.json"):
        mask_of(part_of(grammar_of("words"), [], 1), Grammars(missing))


def test_few_grammars_stay_compiled() -> None:
    fresh = Grammars(tokenizer_json)
    for i in range(MAX_COMPILED + 3):
        mask_of(part_of(compiler().compile_now("regex", f"x{i}"), [], i), fresh)
        fresh.end(i)
    assert len(fresh._compiled) == MAX_COMPILED
    assert len(fresh) == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.0, 0.3, 2.0]))
def test_masked_sampling_is_sampling_of_what_is_allowed(seed: int, temperature: float) -> None:
    """Logits may be wider than the tokenizer, and some rows of a batch have no grammar."""
    logits = torch.randn(3, 80, generator=torch.Generator().manual_seed(seed)) * 5
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(64, size=5, replace=False))
    bits = np.zeros((1, 2), dtype=np.uint32)
    for token in ids:
        bits[0, token >> 5] |= np.uint32(1 << (int(token) & 31))
    how = [Sampling(temperature=temperature, seed=seed, num_top_logprobs=8)] * 3
    masks = TokenMasks([1], bits)
    choices = sample(logits.clone(), how, [5, 6, 7], None, masks)
    plain = sample(logits.clone(), how, [5, 6, 7])
    tokens = choices.tokens.tolist()
    assert [tokens[0], tokens[2]] == [plain.tokens[0], plain.tokens[2]]
    forbidden = np.ones(80, dtype=bool)
    forbidden[ids] = False
    only = logits[1:2].masked_fill(torch.from_numpy(forbidden), -torch.inf)
    alone = sample(only, how[:1], [6])
    assert tokens[1] == alone.tokens[0] and tokens[1] in ids
    if temperature == 0:
        assert tokens[1] == ids[logits[1, ids].argmax()]
    read = choices.read(choices.packed)[1].logprobs[0]
    assert sum(np.exp(value) for _, value in read.top) == pytest.approx(1.0, abs=1e-5)
    assert b"null" not in msgspec.json.encode(read)
