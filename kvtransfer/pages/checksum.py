"""CRC-32 at the end of a message, over all that goes before."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from kvtransfer.pages.layout import CHECKSUM_BYTES


def append_checksum(buffer: Tensor) -> None:
    """`buffer` [bytes] uint8; its last `CHECKSUM_BYTES` are overwritten."""
    value = np.array([_crc(buffer)], dtype=np.int64)
    buffer[-CHECKSUM_BYTES:].copy_(torch.from_numpy(value).view(torch.uint8))


def has_right_checksum(buffer: Tensor) -> bool:
    return int(buffer[-CHECKSUM_BYTES:].cpu().numpy().view(np.int64)[0]) == _crc(buffer)


def _crc(buffer: Tensor) -> int:
    return zlib.crc32(buffer[:-CHECKSUM_BYTES].cpu().numpy().data)
