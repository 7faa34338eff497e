"""How likely a choice is, from the logprobs of the prompt that ends with it. Pure.

The choice and the text before it are tokenized together, and a token may cover the end of one and
the begin of the other. Such a token counts with the choice.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvrelay.answers import TokenLogprob
from kvrelay.errors import MalformedAnswer
from kvrelay.language.backend import ChoiceScore

NUM_BEFORE = 2
"""So many tokens before the end of the prefix are scored, too, to find where the choice begins: the
last one may be another token where the choice follows, and SGLang tells no logprob of the first."""


def first_scored(num_prefix_tokens: int) -> int:
    """Returns the position in the prompt from which logprobs are asked for."""
    return max(num_prefix_tokens - NUM_BEFORE, 0)


def score_of(num_prefix_tokens: int, choice: str, entries: Sequence[TokenLogprob]) -> ChoiceScore:
    """Returns the score of a choice. `entries` are the tokens of prefix and choice from position
    `first_scored` on, with their texts. Raises MalformedAnswer if there are none."""
    own = entries[_begin_of(choice, entries, min(NUM_BEFORE, num_prefix_tokens)) :]
    logprobs = [entry.logprob for entry in own if entry.logprob is not None]
    if not logprobs:
        raise MalformedAnswer(
            f"the server told no logprobs of the choice {choice!r}; it must know logprob_start_len"
        )
    return ChoiceScore(choice, sum(logprobs) / len(logprobs), len(logprobs))


def _begin_of(choice: str, entries: Sequence[TokenLogprob], num_before: int) -> int:
    """Returns the number of the first token that has a part of the choice."""
    texts = [entry.text or "" for entry in entries]
    if not "".join(texts).endswith(choice):
        return num_before  # some tokens have parts of characters, whose texts do not add up
    num_left = len(choice)
    for number in range(len(texts) - 1, -1, -1):
        num_left -= len(texts[number])
        if num_left <= 0:
            return number
    return num_before
