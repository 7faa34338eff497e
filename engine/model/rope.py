"""Computes rotary position embeddings (Su et al., 2021) with the scalings of `RopeConfig`."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from engine.kernels.base import Rotation
from engine.model.rope_config import RopeConfig


def rotation(config: RopeConfig, positions: Tensor, dtype: torch.dtype) -> Rotation:
    """Returns the cosines and sines of `positions` [tokens] in `dtype`; they are computed in
    float32."""
    angles = positions[:, None].float() * inverse_frequencies(config, positions.device)
    cos = angles.cos().mul_(config.attention_factor)  # [tokens, rotary_dim / 2]
    sin = angles.sin().mul_(config.attention_factor)
    return Rotation(
        torch.cat((cos, cos), dim=-1)[:, None].to(dtype),
        torch.cat((-sin, sin), dim=-1)[:, None].to(dtype),
    )


@lru_cache(maxsize=16)
def inverse_frequencies(config: RopeConfig, device: torch.device) -> Tensor:
    """Returns [rotary_dim / 2] float32. It computes on the CPU, so that all devices have the same
    bits."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.int64).float() / config.rotary_dim
    wavelengths = config.theta**exponents  # in tokens per radian
    if config.kind == "linear":
        frequencies = 1.0 / wavelengths / config.factor
    elif config.kind == "llama3":
        frequencies = _llama3(1.0 / wavelengths, config)
    elif config.kind == "yarn":
        frequencies = _yarn(wavelengths, config)
    elif config.kind == "longrope":
        frequencies = 1.0 / (torch.tensor(config.divisors) * wavelengths)
    else:
        frequencies = 1.0 / wavelengths
    return frequencies.to(device)


def _llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Stretches long wavelengths, keeps short ones and blends those between, as Llama 3.1 does."""
    turns = config.original_max_position * frequencies / (2 * math.pi)
    blend = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * frequencies / config.factor + blend * frequencies


def _yarn(wavelengths: Tensor, config: RopeConfig) -> Tensor:
    """Keeps the dimensions that turn more than `beta_fast` times within the trained range,
    stretches those that turn less than `beta_slow` times, and blends those between (Yarn, Peng et
    al., 2023)."""

    def dimension(turns: float) -> float:
        """Returns the dimension, a fraction, that turns so often within the trained range."""
        wavelength = config.original_max_position / (turns * 2 * math.pi)
        return config.rotary_dim * math.log(wavelength) / (2 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(config.rotary_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return ramp / (config.factor * wavelengths) + (1 - ramp) / wavelengths
