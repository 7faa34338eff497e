"""`TokenMasks`: which tokens may be chosen, as bits for some rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL
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
    library: CDLL | None = None
    """The native kernels of a CPU. Without them the bits are looked up, eight by eight."""

    def apply(self, logits: Tensor) -> Tensor:
        """Returns `logits` [n, vocab] float32 with -inf for every token that is not allowed. On a
        CPU these are written into `logits` itself: a copy would take longer than all the rest."""
        if logits.device.type != "cpu":
            return on_rows(logits, self.rows, self._biases(logits).add_)
        if self.library is None or logits.stride(1) != 1:
            for row, bits in zip(self.rows, self._fitted(logits.shape[1]), strict=True):
                biases = np.take(BIASES_OF_BYTES, bits.view(np.uint8), axis=0).reshape(-1)
                logits[row].add_(torch.from_numpy(biases[: logits.shape[1]]))
            return logits
        rows, bits = np.array(self.rows, dtype=np.int64), np.ascontiguousarray(self.bits)
        self.library.forbid(
            logits.data_ptr(),
            logits.stride(0),
            logits.shape[1],
            rows.ctypes.data,
            bits.ctypes.data,
            *bits.shape,
        )
        return logits

    def rows_below(self, num_allowed: float) -> set[int]:
        """Returns the rows whose masks allow fewer tokens than that."""
        counts = np.bitwise_count(self.bits).sum(1)
        return {row for row, count in zip(self.rows, counts, strict=True) if count < num_allowed}

    def _fitted(self, vocab_size: int) -> np.ndarray:
        """Returns the bits with words for a vocabulary of this size."""
        width = -(-vocab_size // 32)
        known = self.bits[:, :width]
        if known.shape[1] == width:
            return known
        return np.pad(known, ((0, 0), (0, width - known.shape[1])))

    def _biases(self, logits: Tensor) -> Tensor:
        """Returns [rows, vocab] float32 on the device: 0 or -inf. The bits travel packed, and are
        unpacked there."""
        device, vocab_size = logits.device, logits.shape[1]
        words = upload(self._fitted(vocab_size).view(np.int32), device)
        places = torch.arange(32, dtype=torch.int32, device=device)
        is_forbidden = (words[:, :, None] >> places & 1).flatten(1)[:, :vocab_size] == 0
        return torch.zeros(is_forbidden.shape, device=device).masked_fill_(is_forbidden, -torch.inf)
