"""What changes logits before a token is drawn: penalties, biases, stops that come too early.

The order is that of SGLang's sampler: what is added for tokens of the answer, what scales tokens
that were seen, `logit_bias`, and last the stops that must wait for `min_new_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.rows import column, on_rows, upload
from engine.sampling.token_counts import SeenTokens
from protocol.sampling import Sampling

MIN_REPETITION_PENALTY = 1e-6
"""A smaller one would take logits out of float32."""


def adjust(
    logits: Tensor,
    samplings: Sequence[Sampling],
    positions: Sequence[int],
    seen: SeenTokens | None = None,
) -> Tensor:
    """Returns `logits` [n, vocab] as changed by the samplings; the very tensor if nothing does.

    `seen` has a row for each of the samplings that have penalties, in order. Ends that a grammar
    allows are not looked at: its mask does that.
    """
    if seen is not None:
        rows = [row for row, s in enumerate(samplings) if s.has_penalties]
        penalised = [samplings[row] for row in rows]
        logits = on_rows(logits, rows, lambda some: _penalise(some, penalised, seen))
    biases = [(row, token, bias) for row, s in enumerate(samplings) for token, bias in s.logit_bias]
    if biases:
        places = _places([(row, token) for row, token, _ in biases], logits.device)
        added = np.array([bias for *_, bias in biases], dtype=np.float32)
        logits = logits.index_put(places, logits[places] + upload(added, logits.device))
    early = [
        (row, token)
        for row, (s, position) in enumerate(zip(samplings, positions, strict=True))
        if position - s.prompt_length < s.min_new_tokens and not s.grammar
        for token in s.end_token_ids
    ]
    if early:
        places = _places(early, logits.device)
        logits = logits.index_put(places, logits.new_full((), -torch.inf))
    return logits


def _places(pairs: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Uploads pairs of row and token, to index logits with."""
    both = upload(np.array(pairs, dtype=np.int64).T, device)
    return both[0], both[1]


def _penalise(logits: Tensor, samplings: Sequence[Sampling], seen: SeenTokens) -> Tensor:
    """Returns `logits` [rows, vocab] float32 after the penalties for what each row has seen.
    Overwrites `seen`: these are the largest tensors of the sampler, and making them takes time."""

    def of_rows(values: Sequence[float]) -> Tensor:
        return column(values, np.float32, logits.device)

    is_in_answer = seen.num_in_answer > 0
    frequency = of_rows([s.frequency_penalty for s in samplings])
    logits = logits - seen.num_in_answer.mul_(frequency)
    presence = of_rows([s.presence_penalty for s in samplings])
    logits -= torch.mul(is_in_answer, presence, out=seen.num_in_answer)
    if all(s.repetition_penalty == 1 for s in samplings):
        return logits
    scale = of_rows([max(s.repetition_penalty, MIN_REPETITION_PENALTY) for s in samplings])
    scaled = torch.where(logits > 0, logits / scale, logits * scale)
    return torch.where(is_in_answer.logical_or_(seen.in_prompt), scaled, logits)
