"""Packs FP8 weights as checkpoints do, and rounds inputs as their formats say, each written from
the formats' rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 128
LARGEST = 448.0


def rounded(values: Tensor, scale: Tensor) -> Tensor:
    return (values / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).float() * scale


@dataclass(frozen=True)
class Fp8Case:
    """A format of FP8: how weights are scaled, and what config.json says."""

    settings: dict[str, Any]
    scaled_by: str
    """tensor, channel or block."""
    scale_name: str = "weight_scale"
    input_scale_name: str = ""
    is_exponent: bool = False
    """True if a scale is a byte, the exponent of a power of two."""
    activations: str = "exact"

    def pack(
        self, num_out: int, num_in: int, chance: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the tensors of a random weight, and the numbers that they stand for."""
        values = torch.randn(num_out, num_in, generator=chance).mul(40).to(torch.float8_e4m3fn)
        shape = {
            "tensor": (1,),
            "channel": (num_out, 1),
            "block": (-(-num_out // BLOCK), -(-num_in // BLOCK)),
        }[self.scaled_by]
        scales = torch.rand(shape, generator=chance).add(0.5).div(500)
        if self.is_exponent:
            scales = torch.exp2(scales.log2().round())
        whole = scales
        if self.scaled_by == "block":
            whole = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            whole = whole[:num_out, :num_in]
        stored = scales
        if self.is_exponent:
            stored = scales.log2().add(127).to(torch.uint8).view(torch.float8_e8m0fnu)
        tensors = {"weight": values, self.scale_name: stored}
        if self.input_scale_name:
            tensors[self.input_scale_name] = torch.tensor([0.01])
        return tensors, values.float() * whole

    def inputs(self, x: Tensor) -> Tensor:
        """Returns `x` [tokens, in] as the format rounds it."""
        if self.activations == "static":
            return rounded(x, torch.tensor(0.01))
        if self.activations == "token":
            return rounded(x, x.abs().amax(1, keepdim=True) / LARGEST)
        if self.activations == "block":
            parts = x.split(BLOCK, 1)
            return torch.cat(
                [rounded(p, p.abs().amax(1, keepdim=True) / LARGEST) for p in parts], 1
            )
        return x


def _compressed(scaled_by: str, activations: str) -> Fp8Case:
    weights = {"num_bits": 8, "type": "float", "strategy": scaled_by, "symmetric": True}
    if scaled_by == "block":
        weights["block_structure"] = [BLOCK, BLOCK]
    inputs = {
        "exact": None,
        "static": {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False},
        "token": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        "block": {
            "num_bits": 8,
            "type": "float",
            "strategy": "group",
            "group_size": BLOCK,
            "dynamic": True,
        },
    }[activations]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*gate$"],
    }
    name = "input_scale" if activations == "static" else ""
    return Fp8Case(settings, scaled_by, input_scale_name=name, activations=activations)


def _fp8(scaled_by: str, scheme: str, activations: str, **changes: Any) -> Fp8Case:
    settings = {
        "quant_method": "fp8",
        "activation_scheme": scheme,
        "weight_block_size": [BLOCK, BLOCK] if scaled_by == "block" else None,
        "modules_to_not_convert": ["lm_head", "mlp.gate"],
    }
    if changes.get("is_exponent"):
        settings["scale_fmt"] = "ue8m0"
    name = changes.pop("scale_name", "weight_scale_inv")
    return Fp8Case(settings, scaled_by, name, activations=activations, **changes)


FP8_CASES = {
    "compressed-tensors by tensor, weights alone": _compressed("tensor", "exact"),
    "compressed-tensors by tensor, static": _compressed("tensor", "static"),
    "compressed-tensors by channel, by token": _compressed("channel", "token"),
    "compressed-tensors by block": _compressed("block", "block"),
    "fp8 in blocks": _fp8("block", "dynamic", "block"),
    "fp8 in blocks, scales are exponents": _fp8("block", "dynamic", "block", is_exponent=True),
    "fp8 by tensor": _fp8("tensor", "dynamic", "token", scale_name="weight_scale"),
    "fp8 by tensor, static": _fp8(
        "tensor", "static", "static", input_scale_name="activation_scale"
    ),
}
