"""Logprobs of the tokens of prompts, from the hidden states of the rows before them.

They are logarithms of the softmax of the model's own logits: temperature, penalties and biases are
for tokens that are drawn, and a prompt's are not. SGLang reports the same.

A prompt may have as many rows as the vocabulary has megabytes, so logits are made and measured in
blocks of rows, of which only a few numbers a row stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.batches.sequence import ScoredTokens, Slice
from engine.rows import upload_all
from engine.sampling.logprobs import LEAST, likeliest, padded_ids
from protocol.prompt_logprobs import PromptLogprobs

BLOCK_VALUES = 1 << 24
"""So many logits are on the device at once: 64 MB, which is 128 rows of a large vocabulary."""

LogitsFunction = Callable[[Tensor], Tensor]
"""[rows, hidden] to [rows, vocab] float32."""


@dataclass(frozen=True)
class PromptScores:
    """What was measured for the scored tokens of a step; on the device until `read` is given
    `packed` on the host."""

    slices: Sequence[Slice]
    """Those that have scored tokens."""
    num_top: int
    num_wanted: int
    packed: Tensor
    """[scored tokens, width] float32. A row is: the token's logprob | those of the `num_top`
    likeliest | those of wanted ids, padded | the ids of the likeliest, as the bits of an int32."""

    def read(self, packed: Tensor) -> list[PromptLogprobs]:
        """Returns the logprobs of each of `slices`. `packed` is on the host."""
        values, begin, read = packed.numpy(), 0, []
        for part, scored in _scored(self.slices):
            end = begin + len(scored.token_ids)
            read.append(self._of_slice(part, scored, values[begin:end]))
            begin = end
        return read

    def _of_slice(self, part: Slice, scored: ScoredTokens, rows: np.ndarray) -> PromptLogprobs:
        num_top = min(scored.sampling.num_top_logprobs, self.num_top)
        num_wanted = len(scored.sampling.logprob_token_ids)
        first_wanted = 1 + self.num_top
        first_id = first_wanted + self.num_wanted
        wanted = rows[:, first_wanted : first_wanted + num_wanted]
        logprobs = np.concatenate([rows[:, : 1 + num_top], wanted], axis=1)
        top_ids = rows[:, first_id : first_id + num_top].view(np.int32)
        return PromptLogprobs(
            start=part.start + scored.first_row + 1,
            num_positions=len(rows),
            num_top=num_top,
            num_wanted=num_wanted,
            logprobs=logprobs.astype("<f4", copy=False).tobytes(),
            top_ids=top_ids.astype("<i4", copy=False).tobytes(),
        )


def score_prompts(
    hidden: Tensor, slices: Sequence[Slice], logits_of: LogitsFunction, vocab_size: int
) -> PromptScores:
    """Measures the scored tokens of `slices`, one at least. Never waits for the device.

    `hidden` [scored tokens, hidden] are the rows before them, in the order of the slices. In each
    block `logits_of` is called once, by all ranks of a node alike.
    """
    parts = [part for part in slices if part.scored is not None]
    all_scored = [scored for _, scored in _scored(parts)]
    samplings = [scored.sampling for scored in all_scored]
    counts = [len(scored.token_ids) for scored in all_scored]
    num_top = min(max(0, *(s.num_top_logprobs for s in samplings)), vocab_size)
    tokens, owners, wanted = upload_all(
        [
            np.concatenate([np.asarray(s.token_ids, dtype=np.int64) for s in all_scored]),
            np.repeat(np.arange(len(parts)), counts),
            padded_ids(samplings),  # [slices, num_wanted]
        ],
        np.int64,
        hidden.device,
    )
    block = max(1, BLOCK_VALUES // vocab_size)
    measured = [
        _measure(logits_of(rows), token, wanted[owner], num_top)
        for rows, token, owner in zip(
            hidden.split(block), tokens.split(block), owners.split(block), strict=True
        )
    ]
    return PromptScores(parts, num_top, wanted.shape[1], torch.cat(measured))


def _measure(logits: Tensor, tokens: Tensor, wanted: Tensor, num_top: int) -> Tensor:
    """Returns rows of `PromptScores.packed`. `logits` [rows, vocab], `tokens` [rows], `wanted`
    [rows, num_wanted]."""
    ids = [tokens[:, None], wanted]
    if num_top > 0:
        ids.insert(1, likeliest(logits, num_top))
    chosen = logits.gather(1, torch.cat(ids, 1))
    logprobs = (chosen - logits.logsumexp(-1, keepdim=True)).clamp(min=LEAST)
    if num_top == 0:
        return logprobs
    return torch.cat([logprobs, ids[1].int().view(torch.float32)], 1)


def _scored(slices: Sequence[Slice]) -> list[tuple[Slice, ScoredTokens]]:
    return [(part, part.scored) for part in slices if part.scored is not None]
