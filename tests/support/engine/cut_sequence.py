"""A sequence that is computed as it is cut, beside others, so that its logits can be compared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from engine.batches.batch import Batch
from engine.batches.sequence import Slice
from engine.steps.runner import ModelRunner
from tests.support.engine.driving import GREEDY, PAGE_SIZE, Sequences, prompt_of

LENGTH = 150
"""Tokens of the sequence that is looked at: more than a block of keys, a tile, a window."""


class Steps:
    """Computes a sequence as it is cut, each piece in a step with whatever else is wanted."""

    def __init__(self, runner: ModelRunner, tokens: list[int]) -> None:
        self.sequences = Sequences(runner)
        self.tokens = tokens
        self.pages = self.sequences.pages(len(tokens))

    @torch.inference_mode()
    def logits(self, begin: int, end: int, others: Sequence[Slice] = (), place: int = 0) -> Tensor:
        """[vocab] after tokens [begin, end); `place` of the piece among the `others`."""
        runner = self.sequences.runner
        slices = list(others)
        slices.insert(place, Slice(self.tokens[begin:end], begin, self.pages, GREEDY))
        batch = Batch.build(slices, PAGE_SIZE, runner.device)
        return runner.model(batch, runner.kv_cache, runner.attention)[place]

    def after(self, bounds: Sequence[int]) -> Tensor:
        """[vocab] after all tokens, computed in pieces that begin at `bounds`."""
        for begin, end in pairwise([*bounds, len(self.tokens)]):
            logits = self.logits(begin, end)
        return logits

    def others(self, seed: int) -> list[Slice]:
        """Slices of other sequences: prompts, chunks and single tokens."""
        chance = random.Random(seed)
        slices = []
        for _ in range(chance.randint(1, 9)):
            start, count = chance.choice([0, 3, 140]), chance.choice([1, 1, 2, 17, 90])
            tokens = prompt_of(count, 199, chance.randrange(100))
            pages = self.sequences.pages(start + count)
            slices.append(Slice(tokens, start, pages, GREEDY))
        return slices
