"""What tests of grammars share: whether a grammar accepts a text, and answers drawn at random."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from itertools import count

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from coordinator.answers.grammars import GrammarCompiler
from engine.batches.sequence import Sampled, Slice
from engine.sampling.grammars import Grammars
from infra.models import EMBEDDED
from protocol.model.grammars import grammar_tokenizer, open_matcher
from protocol.sampling import Sampling

END = 1
"""The embedded model's end token."""
PROMPT = [7, 8, 9]
SEQUENCE_IDS = count(1)


def tokenizer_json() -> str:
    return (EMBEDDED / "tokenizer.json").read_text(encoding="utf-8")


@functools.cache
def tokenizer() -> LLTokenizer:
    return grammar_tokenizer(tokenizer_json())


@functools.cache
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tokenizer_json())


@functools.cache
def grammars() -> Grammars:
    return Grammars(tokenizer_json)


@functools.lru_cache(64)
def matcher_of(grammar: str) -> LLMatcher:
    matcher = open_matcher(tokenizer(), grammar)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


@functools.cache
def _model_tokenizer() -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json())


def accepts(grammar: str, text: str, with_special_tokens: bool = False) -> bool:
    """Returns whether `text` is a whole answer; its special tokens are such, or are spelled."""
    matcher = matcher_of(grammar).deep_copy()
    tokens = (
        _model_tokenizer().encode(text, add_special_tokens=False).ids
        if with_special_tokens
        else tokenizer().tokenize_bytes(text.encode())
    )
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def allowed(bits: np.ndarray) -> list[int]:
    """Returns the tokens of one mask."""
    flags = np.unpackbits(bits.view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(flags)]


@dataclass(frozen=True)
class DrawnAnswer:
    tokens: list[int]
    boundaries: list[int]
    """How many tokens there were before each that was drawn."""
    text: str
    has_ended: bool


def draw(
    grammar: str,
    max_new_tokens: int,
    seed: int,
    before: list[int] | None = None,
    favourite: int | None = None,
    **sampling: int,
) -> DrawnAnswer:
    """Draws an answer as a node does: each token among those that are allowed, by its position and
    `seed` alone, and what is forced behind it. `before`: it goes on behind these tokens.
    `favourite` is drawn wherever it is allowed."""
    how = Sampling(
        grammar=grammar,
        max_new_tokens=max_new_tokens,
        prompt_length=len(PROMPT),
        end_token_ids=(END,),
        **sampling,
    )
    tokens, num_fed, sequence_id = [*PROMPT, *(before or [])], 0, next(SEQUENCE_IDS)
    boundaries: list[int] = []
    while len(tokens) < len(PROMPT) + max_new_tokens and tokens[-1] != END:
        boundaries.append(len(tokens) - len(PROMPT))
        part = Slice(tokens[num_fed:], num_fed, [], how, sequence_id=sequence_id)
        num_fed = len(tokens)
        step = grammars().begin([part])
        assert step is not None
        choices = allowed(step.finish(()).bits[0])
        drawn = random.Random(seed * 100_003 + num_fed).choice(choices)
        if favourite in choices:
            drawn = favourite
        for token in grammars().settle(part, Sampled((drawn,))).tokens:
            tokens.append(token)
            if token == END or len(tokens) == len(PROMPT) + max_new_tokens:
                break
    grammars().end(sequence_id)
    answer = tokens[len(PROMPT) :]
    has_ended = answer[-1] == END
    text = tokenizer().decode_bytes(answer[: len(answer) - has_ended])
    return DrawnAnswer(answer, boundaries, text.decode("utf-8", "replace"), has_ended)
