"""Packs integers as the formats of quantised checkpoints do, word by word in plain Python: another
way than the engine unpacks them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output that each integer of a word of AWQ belongs to."""


@dataclass(frozen=True)
class Integers:
    """A weight [out, in] of integers from 0 on, with zero points and scales [out, groups]."""

    values: Tensor
    zeros: Tensor
    scales: Tensor
    groups: Tensor
    """The group of each input."""

    @property
    def weight(self) -> Tensor:
        """The numbers that these stand for, float32 [out, in]."""
        zeros, scales = self.zeros[:, self.groups], self.scales.float()[:, self.groups]
        return (self.values - zeros).float() * scales


def random_integers(
    num_out: int,
    num_in: int,
    chance: torch.Generator,
    num_bits: int = 4,
    group_size: int = 32,
    is_symmetric: bool = False,
    is_shuffled: bool = False,
) -> Integers:
    """Makes integers of which every value and zero point may occur."""
    num_groups, most = num_in // group_size, 1 << num_bits
    values = torch.randint(0, most, (num_out, num_in), generator=chance)
    zeros = torch.full((num_out, num_groups), most // 2)
    if not is_symmetric:
        zeros = torch.randint(1, most, (num_out, num_groups), generator=chance)
    scales = torch.rand(num_out, num_groups, generator=chance).add(0.5).div(most * 4).half()
    groups = torch.arange(num_in) // group_size
    if is_shuffled:
        groups = groups[torch.randperm(num_in, generator=chance)]
    return Integers(values, zeros, scales, groups)


def words(values: Tensor, num_bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Packs the last dimension, lowest bits first; `order` says which value of a word is where."""
    per_word = 32 // num_bits
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % per_word))
    packed = np.zeros((*padded.shape[:-1], padded.shape[-1] // per_word), np.uint32)
    for place, value in enumerate(order or range(per_word)):
        packed |= padded[..., value::per_word].numpy().astype(np.uint32) << (num_bits * place)
    return torch.from_numpy(packed.view(np.int32))


def awq(integers: Integers) -> dict[str, Tensor]:
    return {
        "qweight": words(integers.values.t(), 4, AWQ_ORDER),
        "qzeros": words(integers.zeros.t(), 4, AWQ_ORDER),
        "scales": integers.scales.t().contiguous(),
    }


def gptq(integers: Integers, num_bits: int = 4, is_v2: bool = False) -> dict[str, Tensor]:
    zeros = words(integers.zeros.t(), num_bits)
    if not is_v2:  # whole words, as the producers do
        ones = sum(1 << place for place in range(0, 32, num_bits))
        zeros = ((zeros.long() - ones + 2**31) % 2**32 - 2**31).int()
    return {
        "qweight": words(integers.values, num_bits).t().contiguous(),
        "qzeros": zeros,
        "scales": integers.scales.t().contiguous(),
        "g_idx": integers.groups.int(),
    }


def compressed(integers: Integers, num_bits: int = 4, has_zeros: bool = False) -> dict[str, Tensor]:
    tensors = {
        "weight_packed": words(integers.values, num_bits),
        "weight_scale": integers.scales,
        "weight_shape": torch.tensor(integers.values.shape),
    }
    if has_zeros:
        tensors["weight_zero_point"] = words(integers.zeros.t(), num_bits).t().contiguous()
    return tensors


@dataclass(frozen=True)
class IntegerCase:
    """A format of integers: how a weight is made and packed, and what config.json says."""

    settings: dict[str, Any]
    """The quantization_config."""
    pack: Callable[[Integers], dict[str, Tensor]]
    num_bits: int = 4
    group_size: int = 32
    is_symmetric: bool = False
    is_shuffled: bool = False

    def integers(self, num_out: int, num_in: int, chance: torch.Generator) -> Integers:
        """Makes a weight of this format."""
        size = num_in if self.group_size == -1 else self.group_size
        return random_integers(
            num_out, num_in, chance, self.num_bits, size, self.is_symmetric, self.is_shuffled
        )


def _gptq_case(
    num_bits: int = 4,
    group_size: int = 32,
    sym: bool = False,
    desc_act: bool = False,
    is_v2: bool = False,
) -> IntegerCase:
    settings = {
        "quant_method": "gptq",
        "bits": num_bits,
        "group_size": group_size,
        "sym": sym,
        "desc_act": desc_act,
        "checkpoint_format": "gptq_v2" if is_v2 else "gptq",
    }
    return IntegerCase(
        settings,
        lambda integers: gptq(integers, num_bits, is_v2),
        num_bits,
        group_size,
        sym,
        desc_act,
    )


def _compressed_case(num_bits: int, group_size: int, symmetric: bool) -> IntegerCase:
    weights = {
        "num_bits": num_bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group_size == -1 else "group",
        "group_size": None if group_size == -1 else group_size,
    }
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    return IntegerCase(
        settings,
        lambda integers: compressed(integers, num_bits, not symmetric),
        num_bits,
        group_size,
        symmetric,
    )


INTEGER_CASES = {
    "awq": IntegerCase(
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
        awq,
    ),
    "awq in groups of 64": IntegerCase(
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"},
        awq,
        group_size=64,
    ),
    "gptq symmetric": _gptq_case(sym=True),
    "gptq": _gptq_case(),
    "gptq v2": _gptq_case(is_v2=True),
    "gptq in 8 bits": _gptq_case(num_bits=8),
    "gptq in 8 bits, symmetric, by output": _gptq_case(8, -1, sym=True),
    "gptq with desc_act": _gptq_case(desc_act=True),
    "gptq with desc_act in groups of 64": _gptq_case(group_size=64, desc_act=True),
    "W4A16": _compressed_case(4, 32, symmetric=True),
    "W4A16 by output": _compressed_case(4, -1, symmetric=True),
    "W4A16 with zero points": _compressed_case(4, 64, symmetric=False),
    "W8A16": _compressed_case(8, 32, symmetric=True),
    "W8A16 with zero points": _compressed_case(8, -1, symmetric=False),
}
