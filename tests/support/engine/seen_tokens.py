"""What sequences have seen, as a sampler is given it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.batches.sequence import Slice
from engine.sampling.states import SequenceStates
from engine.sampling.token_counts import SeenTokens
from protocol.sampling import Sampling


def seen_in(rows: Sequence[tuple[Sequence[int], Sampling]], vocab_size: int) -> SeenTokens | None:
    """What sequences of these tokens have seen, each fed to its state at once."""
    slices = [
        Slice(tokens, 0, [], sampling, sequence_id=i) for i, (tokens, sampling) in enumerate(rows)
    ]
    return SequenceStates(vocab_size, torch.device("cpu")).feed(slices)
