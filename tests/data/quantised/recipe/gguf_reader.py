"""Reads the GGUF files of `by_gguf` into transformers' models, in float32: tensors are dequantised
by the package `gguf`, then put where the base has them."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from bases import random_model
from by_gguf import CASES, is_permuted, named
from torch import Tensor
from transformers import PreTrainedModel


def gguf_model(file: Path) -> PreTrainedModel:
    """Returns the base of a fixture with the weights of its file."""
    case = CASES[file.parent.name]
    model = random_model(case.base)
    weights = {
        tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in gguf.GGUFReader(file).tensors
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_weight(name, weights, model, case.architecture))
    return model


def _weight(
    name: str, weights: dict[str, Tensor], model: PreTrainedModel, architecture: str
) -> Tensor:
    if name.endswith("experts.gate_up_proj"):
        names = [name.replace("gate_up_proj", part) for part in ("gate", "up")]
        return torch.cat([weights[named(part, architecture)] for part in names], 1)
    weight = weights[named(name, architecture)]
    if is_permuted(name, architecture):
        config = model.config
        head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
    if architecture == "gemma3" and "norm" in name:
        return weight - 1
    return weight
