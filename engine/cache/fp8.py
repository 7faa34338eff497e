"""Numbers of eight bits (e4m3 without infinities, Micikevicius et al. 2022) and their scales.

A number means its eight bits times a scale. What is too large for that becomes the largest that
there is; NaN stays NaN. Every kernel that writes such numbers rounds as these functions do.
"""

from __future__ import annotations

import torch
from torch import Tensor

GREATEST = 448.0
SMALLEST_SCALE = 2.0**-24
"""The smallest float16 above 0. Scales of smaller numbers, which all become 0, are this."""


def scales_of(values: Tensor) -> Tensor:
    """Returns the scales with which the greatest of each `values` [.., n] becomes about `GREATEST`:
    [..] float16. They are NaN or infinity for values that have no number among them to go by."""
    greatest = values.float().abs().amax(-1)
    return (greatest * (1 / GREATEST)).half().clamp_min(SMALLEST_SCALE)


def to_fp8(values: Tensor, scales: Tensor) -> Tensor:
    """Returns `values` [.., n] divided by `scales` [..] and rounded to eight bits."""
    scaled = values.float() * scales.float().reciprocal()[..., None]
    return scaled.clamp_(-GREATEST, GREATEST).to(torch.float8_e4m3fn)


def from_fp8(bits: Tensor, scales: Tensor) -> Tensor:
    """Returns the numbers, in float32, that `bits` [.., n] uint8 mean with `scales` [..]."""
    return bits.view(torch.float8_e4m3fn).float().mul_(scales.float()[..., None])
