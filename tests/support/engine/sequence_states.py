"""States of sequences of a small vocabulary, and what they should have seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.sampling.states import SequenceStates
from engine.sampling.token_counts import SeenTokens
from protocol.sampling import Sampling

VOCAB_SIZE = 12
CPU = torch.device("cpu")
PROMPT_LENGTH = 3
LOOKS_AT_ALL = Sampling(
    repetition_penalty=1.5, frequency_penalty=0.5, prompt_length=PROMPT_LENGTH, seed=1
)
LOOKS_AT_ANSWER = Sampling(frequency_penalty=0.5, prompt_length=PROMPT_LENGTH)


def states() -> SequenceStates:
    return SequenceStates(VOCAB_SIZE, CPU)


def assert_seen(seen: SeenTokens | None, row: int, tokens: Sequence[int], all_: bool) -> None:
    assert seen is not None
    prompt, answer = tokens[:PROMPT_LENGTH], tokens[PROMPT_LENGTH:]
    assert seen.num_in_answer[row].tolist() == [answer.count(t) for t in range(VOCAB_SIZE)]
    assert seen.in_prompt[row].tolist() == [all_ and t in prompt for t in range(VOCAB_SIZE)]
