"""`Batches`: rows of token ids with loss weights, for each training step. Knows no model.

A batch is a function of (seed, step) alone, so resuming needs no data state.
"""

from dataclasses import dataclass
from pathlib import Path

import corpus
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Stage:
    """A part of the training: some steps whose rows all have the same length."""

    num_steps: int
    num_rows: int
    num_tokens: int
    echo_share: float  # the share of pieces that are plain repetition


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """A data set whose index is the step and whose item is ids [rows, tokens + 1] (int64) and
    weights [rows, tokens] (float32) of predicting each id but the first."""

    def __init__(
        self, tokenizer_file: Path, stages: tuple[Stage, ...], seed: int, other_weight: float
    ) -> None:
        """`other_weight` is the weight of what the model never has to say, such as requests."""
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.stages = stages
        self.seed = seed
        self.other_weight = other_weight
        self.ids = {token: self.tokenizer.token_to_id(token) for token in corpus.SPECIAL_TOKENS}

    def __len__(self) -> int:
        return sum(stage.num_steps for stage in self.stages)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        stage = self.stage_of(step)
        seeds = [f"{self.seed}-{step}-{row}" for row in range(stage.num_rows)]
        texts = [corpus.row(seed, stage.num_tokens, stage.echo_share) for seed in seeds]
        ids = np.full((stage.num_rows, stage.num_tokens + 1), self.ids["<|pad|>"], dtype=np.int64)
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        for row, encoding in zip(ids, encodings, strict=True):
            kept = encoding.ids[: len(row)]
            row[: len(kept)] = kept
        weights = np.stack([self.weigh(row) for row in ids])
        return torch.from_numpy(ids), torch.from_numpy(weights)

    def stage_of(self, step: int) -> Stage:
        """Returns the stage in which a step lies. Raises IndexError behind the last one."""
        for stage in self.stages:
            if step < stage.num_steps:
                return stage
            step -= stage.num_steps
        raise IndexError("step lies behind the last stage")

    def weigh(self, ids: np.ndarray) -> np.ndarray:
        """Returns the weight of predicting each of ids[1:]: 1 in replies and plain texts, little in
        requests.

        Every special token opens a stretch. <|assistant|> and <|bos|> open one that is learned, the
        others one that is context. (In a chat a role follows <|bos|> at once, so its stretch is
        empty.)
        """
        is_special = np.isin(ids, list(self.ids.values()))
        opener = np.maximum.accumulate(np.where(is_special, np.arange(len(ids)), 0))
        learned = np.isin(ids[opener], [self.ids["<|assistant|>"], self.ids[corpus.BOS]])
        weights = np.where(learned, 1.0, self.other_weight)[:-1]
        role_or_bos = [self.ids[t] for t in (corpus.BOS, corpus.SYSTEM, corpus.USER, "<|pad|>")]
        weights[np.isin(ids[1:], role_or_bos)] = 0.0  # the model must never say these
        weights[np.isin(ids[1:], [self.ids[corpus.ASSISTANT]])] = 0.0
        return weights.astype(np.float32)


def load(batches: Batches, first_step: int, num_workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Returns the batches from `first_step` on, in order; worker processes make them ahead."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, len(batches)),
        num_workers=num_workers,
        prefetch_factor=8 if num_workers else None,
    )
