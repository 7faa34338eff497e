"""Reads the packed formats into float32, by their definitions: an independent second opinion to the
engine's loader and to the producers' own kernels.

    float_model(path)        transformers' model with the weights as they mean to be
    RoundedInputs(model, …)  its linear layers round their inputs to FP8, as W8A8 does
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AWQ each of eight outputs lies."""
BLOCK = 128
LARGEST = 448.0
"""Of float8_e4m3fn."""
EXPERTS_OF_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}

Rounding = Callable[[Tensor], Tensor]


def float_model(path: Path) -> PreTrainedModel:
    """Returns the model of a checkpoint, computed in float32 from dequantised weights."""
    config = json.loads((path / "config.json").read_text())
    settings = config.pop("quantization_config")
    tensors = dequantised(load_file(path / "model.safetensors"), settings)
    with TemporaryDirectory() as folder:
        plain = Path(folder)
        (plain / "config.json").write_text(json.dumps(config))
        save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
        model, report = AutoModelForCausalLM.from_pretrained(
            plain,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            output_loading_info=True,
        )
    assert not any(report.values()), report
    return model.eval()


def dequantised(tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
    """Returns plain float32 tensors under the names of an unquantised checkpoint."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        layers.setdefault(layer, {})[kind] = tensor
    result = {}
    for layer, parts in layers.items():
        if re.fullmatch(r".*self_attn", layer):  # k_scale, v_scale
            continue
        name = _published(layer)
        result[f"{name}.weight"] = _weight(parts, settings)
        if "bias" in parts:
            result[f"{name}.bias"] = parts["bias"].float()
    return result


def _published(layer: str) -> str:
    stem, _, kind = layer.rpartition(".")
    is_expert = ".block_sparse_moe.experts." in layer
    return f"{stem}.{EXPERTS_OF_MIXTRAL.get(kind, kind)}" if is_expert else layer


def _weight(parts: Mapping[str, Tensor], settings: dict[str, Any]) -> Tensor:
    if "qweight" in parts:
        return awq(parts) if settings["quant_method"] == "awq" else gptq(parts, settings)
    if "weight_packed" in parts:
        return packed_integers(parts)
    return scaled(parts)


def unpacked(words: Tensor, bits: int, dimension: int) -> Tensor:
    """Returns the integers of int32 `words`, lowest bits first, along `dimension`."""
    shifts = torch.arange(0, 32, bits)
    values = (words.unsqueeze(-1) >> shifts) & (2**bits - 1)
    values = values.movedim(-1, dimension + 1)
    return values.flatten(dimension, dimension + 1)


def awq(parts: Mapping[str, Tensor]) -> Tensor:
    """Returns [out, in] from qweight [in, out / 8], qzeros [groups, out / 8], scales [groups,
    out]."""
    values, zeros = (_in_order(unpacked(parts[name], 4, 1)) for name in ("qweight", "qzeros"))
    group_size = values.shape[0] // zeros.shape[0]
    scales = parts["scales"].float().repeat_interleave(group_size, 0)
    return ((values - zeros.repeat_interleave(group_size, 0)) * scales).T.contiguous()


def _in_order(values: Tensor) -> Tensor:
    return values.unflatten(1, (-1, 8))[:, :, list(AWQ_ORDER)].flatten(1)


def gptq(parts: Mapping[str, Tensor], settings: dict[str, Any]) -> Tensor:
    """Returns [out, in] from qweight [in / 8, out], qzeros [groups, out / 8], scales [groups, out],
    g_idx [in]. Version 1 stores each word of zero points less one in each of its parts."""
    bits = settings["bits"]
    words = parts["qzeros"].long()
    if settings.get("checkpoint_format", "gptq") == "gptq":
        words = words + sum(1 << shift for shift in range(0, 32, bits))
    values, zeros = unpacked(parts["qweight"], bits, 0), unpacked(words, bits, 1)
    groups = parts["g_idx"].long()
    return ((values - zeros[groups]) * parts["scales"].float()[groups]).T.contiguous()


def packed_integers(parts: Mapping[str, Tensor]) -> Tensor:
    """Returns [out, in] from weight_packed [out, in * bits / 32], weight_scale [out, groups] and
    perhaps weight_zero_point [out * bits / 32, groups]."""
    num_out, num_in = parts["weight_shape"].tolist()
    bits = parts["weight_packed"].shape[1] * 32 // num_in
    values = unpacked(parts["weight_packed"], bits, 1)[:, :num_in]
    scales = parts["weight_scale"].float()
    zeros = torch.full_like(scales, 2 ** (bits - 1))
    if "weight_zero_point" in parts:
        zeros = unpacked(parts["weight_zero_point"], bits, 0)[:num_out].float()
    group_size = num_in // scales.shape[1]
    return (values - zeros.repeat_interleave(group_size, 1)) * scales.repeat_interleave(
        group_size, 1
    )


def scaled(parts: Mapping[str, Tensor]) -> Tensor:
    """Returns a plain weight, or one of FP8 times its scale: of all, of each output, of each block
    of 128 x 128."""
    weight = parts["weight"].float()
    scale = parts.get("weight_scale", parts.get("weight_scale_inv"))
    if scale is None:
        return weight
    if scale.dim() == 2 and scale.shape[0] != weight.shape[0]:
        scale = scale.repeat_interleave(BLOCK, 0)[: weight.shape[0]]
        scale = scale.repeat_interleave(BLOCK, 1)[:, : weight.shape[1]]
    return weight * scale.float()


class RoundedInputs(torch.overrides.TorchFunctionMode):
    """While it is entered, the weights of FP8 of `model` are multiplied by inputs that are rounded
    as `path` says; other weights as they are, and those with `leave` in their names."""

    def __init__(self, model: PreTrainedModel, path: Path, leave: str = "") -> None:
        super().__init__()
        config = json.loads((path / "config.json").read_text())
        self._model = model
        self._settings = config["quantization_config"]
        self._tensors = load_file(path / "model.safetensors")
        self._roundings = {
            weight.data_ptr(): rounding
            for name, weight in _weights(model)
            if not (leave and leave in name) and (rounding := self._rounding(name)) is not None
        }

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.nn.functional.linear:
            rounding = self._roundings.get(args[1].data_ptr(), _as_it_is)
            args = (rounding(args[0]), *args[1:])
        return function(*args, **(kwargs or {}))

    def _rounding(self, layer: str) -> Rounding | None:
        weight = self._tensors.get(f"{layer}.weight")
        if weight is None or weight.dtype != torch.float8_e4m3fn:
            return None
        for name in ("input_scale", "activation_scale"):
            if f"{layer}.{name}" in self._tensors:
                scale = self._tensors[f"{layer}.{name}"].float()
                return lambda inputs: rounded(inputs, scale)
        names = (f"{layer}.weight_scale", f"{layer}.weight_scale_inv")
        [scales] = [self._tensors[name] for name in names if name in self._tensors]
        is_in_blocks = scales.dim() == 2 and scales.shape[0] != weight.shape[0]
        return by_block if is_in_blocks else by_token


def _weights(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """Returns each weight that is multiplied, with the name of its layer in a checkpoint. The
    experts of transformers are one tensor, gate and up one weight, which have the same inputs."""
    result = []
    for name, parameter in model.named_parameters():
        layer = name.removesuffix(".weight")
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            result.append((layer, parameter))
            continue
        stem, _, kind = name.rpartition(".")
        for expert, weight in enumerate(parameter):
            result.append((f"{stem}.{expert}.{kind.replace('gate_up', 'gate')}", weight))
    return result


def rounded(inputs: Tensor, scale: Tensor) -> Tensor:
    """Returns the multiples of `scale` by numbers of FP8 that are nearest to `inputs`."""
    values = (inputs / scale).clamp(-LARGEST, LARGEST)
    return values.to(torch.float8_e4m3fn).float() * scale


def by_token(inputs: Tensor) -> Tensor:
    """Returns `inputs` [..., in] rounded by the largest of each token; zeros stay zeros."""
    largest = inputs.abs().amax(-1, keepdim=True)
    return rounded(inputs, torch.where(largest > 0, largest / LARGEST, 1.0))


def by_block(inputs: Tensor) -> Tensor:
    """Returns `inputs` [..., in] rounded by the largest of each 128 of a token."""
    return torch.cat([by_token(block) for block in inputs.split(BLOCK, -1)], -1)


def _as_it_is(inputs: Tensor) -> Tensor:
    return inputs
