"""Checks that all engines compute the same thing, before any of them is timed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.engines.cells import ComparedEngine

NUM_PROMPT_TOKENS = 40
NUM_STEPS = 24
TIE = 1e-3
"""Logits of random weights spread over several units, rounding moves them by some 1e-5."""


class Disagreement(Exception):
    """An engine chooses a token that is not the likeliest one: its times would mean nothing."""


@dataclass(frozen=True)
class Agreement:
    num_choices: int
    num_ties: int
    """Choices of another token than the reference's whose logit is as good within TIE."""


def random_tokens(vocab_size: int) -> list[int]:
    chance = random.Random(11)
    return [chance.randrange(3, vocab_size) for _ in range(NUM_PROMPT_TOKENS + NUM_STEPS)]


def require_agreement(
    engine: ComparedEngine, tokens: Sequence[int], reference: Tensor, num_prompt_tokens: int
) -> Agreement:
    """Raises Disagreement. `reference` [tokens, vocab]: the logits after each of `tokens`.

    All engines are given the same tokens whatever they choose, so one tie does not lead to other
    texts; a choice is right if its reference logit is within TIE of the greatest.
    """
    chosen = engine.choices(tokens, num_prompt_tokens)
    wanted = reference[num_prompt_tokens - 1 :]
    assert len(chosen) == len(wanted)
    num_ties = 0
    for position, (token, logits) in enumerate(zip(chosen, wanted, strict=True)):
        missing = float(logits.max() - logits[token])
        if missing > TIE:
            raise Disagreement(
                f"{engine.name} chooses {token} after {num_prompt_tokens + position} tokens, the "
                f"reference {int(logits.argmax())}, whose logit is greater by {missing:.4f}"
            )
        num_ties += token != int(logits.argmax())
    return Agreement(len(chosen), num_ties)
