"""`quant_method: fp8`, in its dialects, written here from the format: its producers need a GPU.

    python by_hand.py

In blocks of 128 x 128 the scale is called `weight_scale_inv` although it multiplies. Per tensor
there are two dialects: `weight_scale` with `input_scale`, and `weight_scale_inv` with
`activation_scale`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bases import calibration, keep, random_model, save_base
from safetensors.torch import load_file, save_file
from torch import Tensor

BLOCK = 128
LARGEST = 448.0
"""Of float8_e4m3fn."""


@dataclass(frozen=True)
class Dialect:
    """How a file spells FP8."""

    scale: str
    input_scale: str = ""
    """Empty: activations are scaled as they come."""
    is_in_blocks: bool = False
    ignored: str = "modules_to_not_convert"

    def config(self) -> dict[str, Any]:
        """Returns its quantization_config."""
        config: dict[str, Any] = {
            "quant_method": "fp8",
            "activation_scheme": "static" if self.input_scale else "dynamic",
            self.ignored: ["lm_head"],
        }
        return config | ({"weight_block_size": [BLOCK, BLOCK]} if self.is_in_blocks else {})


CASES = {
    "fp8-block-qwen3": ("blocks", Dialect("weight_scale_inv", is_in_blocks=True)),
    "fp8-block-qwen3-moe": ("qwen3-moe", Dialect("weight_scale_inv", is_in_blocks=True)),
    "fp8-tensor-static-llama": (
        "llama",
        Dialect("weight_scale", "input_scale", ignored="ignored_layers"),
    ),
    "fp8-tensor-static-phi3": ("phi3", Dialect("weight_scale_inv", "activation_scale")),
    "fp8-tensor-dynamic-qwen2": ("qwen2", Dialect("weight_scale")),
}


def in_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `weight` [out, in] in FP8 and the scales [ceil(out / 128), ceil(in / 128)]."""
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    scales = torch.empty(rows, columns)
    values = torch.empty_like(weight)
    for row in range(rows):
        for column in range(columns):
            block = (
                slice(row * BLOCK, (row + 1) * BLOCK),
                slice(column * BLOCK, (column + 1) * BLOCK),
            )
            scales[row, column] = weight[block].abs().max() / LARGEST
            values[block] = weight[block] / scales[row, column]
    return values.to(torch.float8_e4m3fn), scales


def as_one(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `weight` in FP8 and its only scale, which has no dimension."""
    scale = weight.abs().max() / LARGEST
    return (weight / scale).to(torch.float8_e4m3fn), scale


def input_scales(base: str) -> dict[str, Tensor]:
    """Returns the scale of the inputs of each linear layer, from the largest in calibration."""
    model = random_model(base)
    largest: dict[str, Tensor] = {}

    def watch(name: str, inputs: Tensor) -> None:
        largest[name] = torch.maximum(inputs.abs().max(), largest.get(name, torch.tensor(0.0)))

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args, name=name: watch(name, args[0]))
    with torch.inference_mode():
        for example in calibration():
            model(torch.tensor([example["input_ids"]]))
    return {name: value / LARGEST for name, value in largest.items()}


def is_packed(name: str) -> bool:
    """Says whether a tensor of the base is the weight of a layer that is multiplied in FP8."""
    return name.endswith("_proj.weight")


def make(name: str) -> None:
    """Writes one fixture."""
    base, dialect = CASES[name]
    with TemporaryDirectory() as folder:
        source, made = Path(folder) / "base", Path(folder) / "made"
        save_base(base, source)
        made.mkdir()
        tensors = load_file(source / "model.safetensors")
        for weight_name in [name for name in tensors if is_packed(name)]:
            weight = tensors[weight_name].float()
            values, scale = in_blocks(weight) if dialect.is_in_blocks else as_one(weight)
            tensors[weight_name] = values
            tensors[weight_name.replace("weight", dialect.scale)] = scale
        if dialect.input_scale:
            for layer, scale in input_scales(base).items():
                if is_packed(f"{layer}.weight"):
                    tensors[f"{layer}.{dialect.input_scale}"] = scale
        save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((source / "config.json").read_text())
        config["quantization_config"] = dialect.config()
        (made / "config.json").write_text(json.dumps(config))
        keep(made, name)


if __name__ == "__main__":
    for name in CASES:
        make(name)
