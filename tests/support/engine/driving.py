"""Drives a runner as a scheduler would; knows no transformers, so that workers start quickly."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from engine.batches.batch import Batch
from engine.batches.sequence import Slice
from engine.steps.runner import ModelRunner
from protocol.sampling import Sampling

GREEDY = Sampling(temperature=0.0)
PAGE_SIZE = 16
CPU = torch.device("cpu")


class Sequences:
    """Sequences on scattered pages."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.free = list(range(runner.kv_cache.num_pages))
        random.Random(5).shuffle(self.free)

    def pages(self, num_tokens: int) -> list[int]:
        return [self.free.pop() for _ in range(-(-num_tokens // PAGE_SIZE))]

    def generate(self, prompt: list[int], count: int, chunk: int = 10_000) -> list[int]:
        tokens, pages = list(prompt), self.pages(len(prompt) + count)
        computed = 0
        while len(tokens) < len(prompt) + count:
            part = tokens[computed : computed + chunk]
            is_last = computed + len(part) == len(tokens)
            [token] = self.runner.run([Slice(part, computed, pages, GREEDY if is_last else None)])
            computed += len(part)
            if token is not None:
                tokens.append(token)
        return tokens[len(prompt) :]

    @torch.inference_mode()
    def logits(self, prompt: list[int]) -> Tensor:
        """[vocab], of the token after `prompt`."""
        slices = [Slice(prompt, 0, self.pages(len(prompt)), GREEDY)]
        batch = Batch.build(slices, PAGE_SIZE, self.runner.device)
        return self.runner.model(batch, self.runner.kv_cache, self.runner.attention)[0]


def prompt_of(length: int, vocab_size: int, seed: int = 0) -> list[int]:
    chance = random.Random(f"{length}/{seed}")
    return [chance.randrange(3, vocab_size) for _ in range(length)]
