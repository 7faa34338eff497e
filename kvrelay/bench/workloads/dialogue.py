"""What clients ask of a server: dialogues of one or more turns. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

SENTENCE = (
    "the old man went to sea and saw a small bird over green water then he said I know my way "
    "home because light of that star is still with me tonight"
)
WORDS = tuple(SENTENCE.split())


@dataclass(frozen=True)
class Passage:
    """Made-up text of so many tokens. Passages with the same seed begin with the same tokens."""

    seed: str
    num_tokens: int


@dataclass(frozen=True)
class UserTurn:
    """What a user adds to a dialogue, and how many tokens the answer shall have."""

    content: str | tuple[Passage, ...]
    num_output_tokens: int


@dataclass(frozen=True)
class Dialogue:
    """Turns of one user, each sent when the answer to the one before it has ended.

    `arrival_s` is when the first one is sent, in seconds from the start; None if the workload knows
    no times.
    """

    turns: tuple[UserTurn, ...]
    arrival_s: float | None = None


@dataclass(frozen=True)
class PastTurn:
    """A turn that was answered: its text, and its token ids where the server told them."""

    turn: UserTurn
    text: str
    output_ids: tuple[int, ...] = ()


def token_ids(passages: Sequence[Passage], vocabulary: range) -> list[int]:
    """Returns the passages as token ids of `vocabulary`, exactly as many as they ask for."""
    return [
        vocabulary[number % len(vocabulary)]
        for passage in passages
        for number in _numbers(passage.seed, passage.num_tokens)
    ]


def words(passages: Sequence[Passage]) -> str:
    """Returns the passages as common English words, one for each token that they ask for. A
    tokenizer makes about as many tokens of them; only the server knows how many."""
    return " ".join(
        WORDS[number % len(WORDS)]
        for passage in passages
        for number in _numbers(passage.seed, passage.num_tokens)
    )


@lru_cache(maxsize=4096)
def _numbers(seed: str, count: int) -> memoryview:
    """Returns `count` numbers below 2^16 that follow from `seed`; fewer are a prefix of more."""
    return memoryview(hashlib.shake_128(seed.encode()).digest(2 * count)).cast("H")
