"""The optional checksum at the end of a message: CRC-32 of all bytes before it, as int64."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from kvtransfer.pages.layout import CHECKSUM_BYTES


def append_checksum(buffer: Tensor) -> None:
    """Writes the checksum into the last `CHECKSUM_BYTES` of `buffer` ([bytes] uint8)."""
    value = np.array([_crc(buffer)], dtype=np.int64)
    buffer[-CHECKSUM_BYTES:].copy_(torch.from_numpy(value).view(torch.uint8))


def has_right_checksum(buffer: Tensor) -> bool:
    """Returns True if the last `CHECKSUM_BYTES` of `buffer` are the checksum of the rest."""
    return int(buffer[-CHECKSUM_BYTES:].cpu().numpy().view(np.int64)[0]) == _crc(buffer)


def _crc(buffer: Tensor) -> int:
    return zlib.crc32(buffer[:-CHECKSUM_BYTES].cpu().numpy().data)
