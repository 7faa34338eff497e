"""A tokenizer made of a file of ranks gives the ids that tiktoken gives, whatever the ranks."""

from __future__ import annotations

import json
import random
from functools import cache

import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from protocol.model.first_qwen import PATTERN, SPECIAL_TOKENS
from protocol.model.tiktoken_ranks import tokenizer_of_ranks

ALPHABETS = ["ab", "a \n", "aA'sST'llVe", "0123 ,.\r\n\t", "éè漢字🙂 ", "ab<|im_end|>"]
NUM_SEEDS = 6


def any_ranks(seed: int) -> dict[bytes, int]:
    """Returns ranks of all bytes, in any order, and of 300 tokens, each joined from two others that
    have lower ranks: more ways to make one token than any training would leave."""
    chance = random.Random(seed)
    tokens = [bytes([value]) for value in chance.sample(range(256), 256)]
    usual = [bytes([value]) for text in ALPHABETS for value in text.encode()]
    while len(tokens) < 556:
        grown = [token for token in tokens[256:] if len(token) < 6]
        token = chance.choice(usual + grown) + chance.choice(usual + grown)
        if token not in tokens:
            tokens.append(token)
    return {token: rank for rank, token in enumerate(tokens)}


@cache
def both(seed: int) -> tuple[Tokenizer, tiktoken.Encoding]:
    return pair_of(any_ranks(seed))


def pair_of(ranks: dict[bytes, int]) -> tuple[Tokenizer, tiktoken.Encoding]:
    """Returns the tokenizer that is made of the ranks, and tiktoken's."""
    made = Tokenizer.from_str(json.dumps(tokenizer_of_ranks(ranks, PATTERN, SPECIAL_TOKENS)))
    special = {text: number for number, text in enumerate(SPECIAL_TOKENS, start=len(ranks))}
    return made, tiktoken.Encoding(
        "any", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


texts = st.one_of(st.text(), *(st.text(alphabet, min_size=4) for alphabet in ALPHABETS))


@settings(max_examples=300)
@given(seed=st.integers(0, NUM_SEEDS - 1), parts=st.lists(texts, max_size=4))
def test_ids_are_tiktokens(seed: int, parts: list[str]) -> None:
    made, expected = both(seed)
    text = SPECIAL_TOKENS[1].join(parts)
    # The library's own form C: which characters are combined depends on the version of Unicode.
    plain = SPECIAL_TOKENS[1].join(made.normalizer.normalize_str(part) for part in parts)
    ids = made.encode(text).ids
    assert ids == expected.encode(plain, allowed_special="all")
    assert made.decode(ids, skip_special_tokens=False) == plain


def test_a_piece_that_is_a_token_is_that_token() -> None:
    """abcd is made of ab and cd alone, and bc comes before either: it is never joined, yet tiktoken
    takes it where a piece of the text is abcd and no more."""
    ranks = {bytes([value]): value for value in range(256)}
    ranks |= {b"bc": 256, b"ab": 257, b"cd": 258, b"abcd": 259}
    made, expected = pair_of(ranks)
    for text, ids in (("abcd", [259]), ("abcda", [97, 256, 100, 97])):
        assert made.encode(text).ids == expected.encode(text) == ids
