"""`TokenMasks`: which tokens may be chosen, as bits for some rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.rows import on_rows, upload

BIASES_OF_BYTES = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"),
    np.float32(0),
    np.float32(-np.inf),
)
"""[256, 8] float32: for each byte of a mask, what is added to the logits of its tokens."""


@dataclass(frozen=True)
class TokenMasks:
    """One mask for each of `rows`, ascending rows of the logits."""

    rows: Sequence[int]
    bits: np.ndarray
    """[rows, words] uint32: bit i of word w is the token 32 w + i. Tokens beyond are forbidden."""

    def apply(self, logits: Tensor) -> Tensor:
        """Returns `logits` [n, vocab] with -inf for every token that is not allowed; what is no
        number stays none."""
        biases = self._biases(logits.shape[1], logits.device)
        return on_rows(logits, self.rows, biases.add_)

    def _biases(self, vocab_size: int, device: torch.device) -> Tensor:
        """Returns [rows, vocab] float32: 0 or -inf. The bits travel packed, to a device that
        unpacks them; for a CPU they are looked up, eight by eight, which is twice as fast."""
        width = -(-vocab_size // 32)
        bits = np.zeros((len(self.bits), width), dtype=np.uint32)
        known = min(width, self.bits.shape[1])
        bits[:, :known] = self.bits[:, :known]
        if device.type == "cpu":
            biases = np.take(BIASES_OF_BYTES, bits.view(np.uint8), axis=0)
            return torch.from_numpy(biases.reshape(len(bits), -1)[:, :vocab_size])
        words = upload(bits.view(np.int32), device)
        places = torch.arange(32, dtype=torch.int32, device=device)
        is_forbidden = (words[:, :, None] >> places & 1).flatten(1)[:, :vocab_size] == 0
        return torch.zeros(is_forbidden.shape, device=device).masked_fill_(is_forbidden, -torch.inf)
