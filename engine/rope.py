"""Rotary position embedding (Su et al., 2021) with the scalings of `RopeScaling`."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from engine.model_config import ModelConfig


@lru_cache(maxsize=8)
def inverse_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """[head_dim / 2] float32. Computed on the CPU, so that every device has the same bits."""
    return _inverse_frequencies(config).to(device)


def _inverse_frequencies(config: ModelConfig) -> Tensor:
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(frequencies, config)
    return frequencies


def cos_sin(frequencies: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin for `rotate`, [tokens, 1, head_dim], of `positions` [tokens].

    Computed in float32. The first half of sin is negated, as `rotate` needs it.
    """
    angles = (positions[:, None].float() * frequencies)[:, None]  # [tokens, 1, head_dim / 2]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates [tokens, heads, head_dim] in the half-split layout of Hugging Face weights."""
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    return (heads * cos).add_(swapped.mul_(sin))


def _llama3(frequencies: Tensor, config: ModelConfig) -> Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones kept, those between blended."""
    scaling = config.rope_scaling
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_position / wavelengths
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies
