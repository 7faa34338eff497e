"""`TokenMasks`: which tokens may be chosen, as bits for some rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.batches.rows import on_rows, upload


@dataclass(frozen=True)
class TokenMasks:
    """One mask for each of `rows`, ascending rows of the logits."""

    rows: Sequence[int]
    bits: np.ndarray
    """[rows, words] uint32: bit i of word w is the token 32 w + i. Tokens beyond are forbidden."""

    def apply(self, logits: Tensor) -> Tensor:
        """Returns `logits` [n, vocab] with -inf for every token that is not allowed."""
        forbidden = self._forbidden(logits.shape[1], logits.device)
        return on_rows(logits, self.rows, lambda some: some.masked_fill(forbidden, -torch.inf))

    def _forbidden(self, vocab_size: int, device: torch.device) -> Tensor:
        """Returns [rows, vocab] bool. The bits travel packed, to a device that unpacks them."""
        width = -(-vocab_size // 32)
        bits = np.zeros((len(self.bits), width), dtype=np.uint32)
        bits[:, : self.bits.shape[1]] = self.bits[:, :width]
        if device.type == "cpu":
            flags = np.unpackbits(~bits.view(np.uint8), axis=1, bitorder="little")
            return torch.from_numpy(flags[:, :vocab_size].view(np.bool_))
        words = upload(bits.view(np.int32), device)
        places = torch.arange(32, dtype=torch.int32, device=device)
        is_allowed = (words[:, :, None] >> places & 1).bool().flatten(1)
        return ~is_allowed[:, :vocab_size]
