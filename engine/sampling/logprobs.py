"""Logprobs of chosen, likeliest and wanted tokens, for the rows of a batch that ask for them.

They are natural logarithms of the softmax of the logits that tokens are drawn from: after
penalties, biases and the temperature (1 if greedy), before top_k, top_p and min_p. That is what
SGLang reports (unless its SGLANG_RETURN_ORIGINAL_LOGPROB is set).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.rows import column, upload
from protocol.sampling import Sampling, TokenLogprobs

LEAST = torch.finfo(torch.float32).min
"""The logprob of a token that cannot be chosen: JSON has no infinity."""
MIN_TEMPERATURE = 1e-6
"""Colder than this, nothing but the likeliest token is drawn."""
MAX_TEMPERATURE = float(torch.finfo(torch.float32).max)
"""Hotter than this, the divisor would be infinite, and a forbidden token's logit NaN."""


@dataclass(frozen=True)
class LogprobTable:
    """What was measured, on the device: `values` [rows, width] float64, which also holds any token
    id exactly.

    A row is: chosen | `num_top` ids | their logprobs | logprobs of wanted ids, padded.
    """

    rows: Sequence[int]
    samplings: Sequence[Sampling]
    num_top: int
    values: Tensor

    def read(self, host: np.ndarray) -> dict[int, TokenLogprobs]:
        """Returns the logprobs by row of the batch, from `values` as they arrived on the host."""
        first_logprob, first_wanted = 1 + self.num_top, 1 + 2 * self.num_top
        tables = {}
        for row, sampling, values in zip(self.rows, self.samplings, host.tolist(), strict=True):
            count = min(sampling.num_top_logprobs, self.num_top)
            ids = [int(value) for value in values[1 : 1 + count]]
            logprobs = values[first_logprob : first_logprob + count]
            wanted = values[first_wanted : first_wanted + len(sampling.logprob_token_ids)]
            tables[row] = TokenLogprobs(values[0], list(zip(ids, logprobs, strict=True)), wanted)
        return tables


def temperatures(samplings: Sequence[Sampling], device: torch.device) -> Tensor:
    """Returns what logits are divided by, [n, 1] float32; 1 for a greedy row."""
    values = [
        min(max(s.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE) if s.temperature else 1.0
        for s in samplings
    ]
    return column(values, np.float32, device)


def measure(logits: Tensor, samplings: Sequence[Sampling], tokens: Tensor) -> LogprobTable | None:
    """Measures the rows that ask for logprobs: `tokens` [n] were chosen from `logits` [n, vocab].
    Returns None if nobody asks."""
    rows = [row for row, s in enumerate(samplings) if s.wants_logprobs]
    if not rows:
        return None
    device, vocab_size = logits.device, logits.shape[1]
    asked = [samplings[row] for row in rows]
    if len(rows) < len(samplings):
        index = upload(np.array(rows, dtype=np.int64), device)
        logits, tokens = logits.index_select(0, index), tokens.index_select(0, index)
    # Relative to the largest, which is then 0: a division of others may overflow, to -inf.
    relative = logits - logits.amax(-1, keepdim=True)
    logprobs = (relative / temperatures(asked, device)).log_softmax(-1).clamp(min=LEAST)
    parts = [logprobs.gather(1, tokens[:, None])]
    num_top = min(max(s.num_top_logprobs for s in asked), vocab_size)
    if num_top > 0:
        ids = likeliest(logits, num_top)
        parts += [ids, logprobs.gather(1, ids)]
    if any(s.logprob_token_ids for s in asked):
        parts.append(logprobs.gather(1, upload(padded_ids(asked), device)))
    return LogprobTable(rows, asked, num_top, torch.cat([part.double() for part in parts], 1))


def likeliest(logits: Tensor, count: int) -> Tensor:
    """Returns [rows, count] ids, the likeliest first and of equal ones the lowest id first, which
    is the one that argmax takes.

    `topk` alone chooses among equals as it likes, by `count` and by device. So it is given keys
    of which no two are equal: the bits of a float, ordered as the float is, over the id.
    """
    last_id = logits.shape[1] - 1
    bits = (logits + 0.0).view(torch.int32)  # + 0.0: -0 is 0
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    ids = torch.arange(last_id + 1, device=logits.device)
    keys = ordered * (1 << 32) + (last_id - ids)
    return last_id - (keys.topk(count).values & 0xFFFFFFFF)


def padded_ids(asked: Sequence[Sampling]) -> np.ndarray:
    """Returns the wanted ids of each, [rows, most] int64, with 0 behind them."""
    wanted = np.zeros((len(asked), max(len(s.logprob_token_ids) for s in asked)), dtype=np.int64)
    for row, sampling in zip(wanted, asked, strict=True):
        row[: len(sampling.logprob_token_ids)] = sampling.logprob_token_ids
    return wanted
