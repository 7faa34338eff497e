"""What changes logits before a token is drawn: penalties, biases, stops that come too early.

In the order of SGLang's sampler: what is added for tokens of the answer, what scales tokens that
were seen, `logit_bias`, and last the stops that must wait for `min_new_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.rows import column, on_rows, upload
from protocol.sampling import Sampling

MIN_REPETITION_PENALTY = 1e-6
"""A smaller one would take logits out of float32."""


def adjust(
    logits: Tensor,
    samplings: Sequence[Sampling],
    positions: Sequence[int],
    histories: Sequence[Sequence[int]],
) -> Tensor:
    """`logits` [n, vocab] as changed by the samplings; the very tensor if nothing changes it.

    `histories[i]`: all tokens before the one to choose, if `samplings[i].needs_history`.
    """
    penalised = [row for row, s in enumerate(samplings) if s.needs_history]
    if penalised:
        seen = _Seen.build(penalised, samplings, histories, logits)
        logits = on_rows(logits, penalised, seen.penalise)
    biases = [(row, token, bias) for row, s in enumerate(samplings) for token, bias in s.logit_bias]
    if biases:
        places = _places([(row, token) for row, token, _ in biases], logits.device)
        added = np.array([bias for *_, bias in biases], dtype=np.float32)
        logits = logits.index_put(places, logits[places] + upload(added, logits.device))
    early = [
        (row, token)
        for row, (s, position) in enumerate(zip(samplings, positions, strict=True))
        if position - s.prompt_length < s.min_new_tokens
        for token in s.end_token_ids
    ]
    if early:
        places = _places(early, logits.device)
        logits = logits.index_put(places, logits.new_full((), -torch.inf))
    return logits


def _places(pairs: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and tokens, to index logits with."""
    both = upload(np.array(pairs, dtype=np.int64).T, device)
    return both[0], both[1]


class _Seen:
    """Tokens that came before, of the rows with a penalty."""

    def __init__(self, samplings: Sequence[Sampling], seen: Tensor, counts: Tensor) -> None:
        self._samplings = samplings
        self._seen = seen  # [rows, vocab] bool: in the prompt or in the answer
        self._counts = counts  # [rows, vocab] float32: how often in the answer

    @classmethod
    def build(
        cls,
        rows: Sequence[int],
        samplings: Sequence[Sampling],
        histories: Sequence[Sequence[int]],
        logits: Tensor,
    ) -> _Seen:
        """The prompt counts for the repetition penalty alone, so only that looks at it."""
        asked = [samplings[row] for row in rows]
        begins = [0 if s.repetition_penalty != 1 else s.prompt_length for s in asked]
        parts = [
            np.asarray(histories[row][begin:], dtype=np.int64)
            for row, begin in zip(rows, begins, strict=True)
        ]
        lengths = [len(part) for part in parts]
        prompts = [s.prompt_length - begin for s, begin in zip(asked, begins, strict=True)]
        is_answer = [
            np.arange(length) >= prompt for length, prompt in zip(lengths, prompts, strict=True)
        ]
        owners = np.repeat(np.arange(len(rows)), lengths)
        packed = np.stack([np.concatenate(parts), owners, np.concatenate(is_answer)])
        tokens, owner, counted = upload(packed, logits.device)  # [history tokens] each
        shape = len(rows), logits.shape[1]
        places = owner * shape[1] + tokens
        seen = torch.zeros(shape, dtype=torch.bool, device=logits.device)
        seen.view(-1).index_fill_(0, places, True)
        counts = torch.zeros(shape, device=logits.device)
        counts.view(-1).scatter_add_(0, places, counted.float())  # whole numbers: exact
        return cls(asked, seen, counts)

    def penalise(self, logits: Tensor) -> Tensor:
        """`logits` [rows, vocab] float32."""

        def of(values: Sequence[float]) -> Tensor:
            return column(values, np.float32, logits.device)

        frequency = of([s.frequency_penalty for s in self._samplings])
        presence = of([s.presence_penalty for s in self._samplings])
        scale = of([max(s.repetition_penalty, MIN_REPETITION_PENALTY) for s in self._samplings])
        logits = logits - frequency * self._counts - presence * (self._counts > 0)
        scaled = torch.where(logits > 0, logits / scale, logits * scale)
        return torch.where(self._seen, scaled, logits)
