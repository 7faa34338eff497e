"""Made-up dialogues whose users share beginnings, as those of a few applications do. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kvrelay.bench.workloads.dialogue import Dialogue, Passage, UserTurn


@dataclass(frozen=True)
class Synthetic:
    """Sizes of made-up dialogues. The first turn is a beginning that every `num_prefixes`-th
    dialogue shares, and tokens of its own; later turns have tokens of their own only."""

    num_input_tokens: int
    num_output_tokens: int
    num_prefix_tokens: int
    num_prefixes: int
    num_turns: int
    seed: int


def synthetic_dialogues(sizes: Synthetic, num_requests: int) -> list[Dialogue]:
    """Returns dialogues of `num_requests` requests in all; equal seeds give equal ones."""
    per_dialogue = sizes.num_turns
    dialogues = []
    for first in range(0, num_requests, per_dialogue):
        index = first // per_dialogue
        num_turns = min(per_dialogue, num_requests - first)
        turns = tuple(_turn(sizes, index, position) for position in range(num_turns))
        dialogues.append(Dialogue(turns))
    return dialogues


def _turn(sizes: Synthetic, index: int, position: int) -> UserTurn:
    own = Passage(f"{sizes.seed}/own/{index}/{position}", sizes.num_input_tokens)
    if position > 0 or not sizes.num_prefix_tokens:
        return UserTurn((own,), sizes.num_output_tokens)
    seed = f"{sizes.seed}/prefix/{index % sizes.num_prefixes}"
    return UserTurn((Passage(seed, sizes.num_prefix_tokens), own), sizes.num_output_tokens)
