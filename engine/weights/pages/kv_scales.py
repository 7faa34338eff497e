"""Finds the scales that a checkpoint brings for FP8 pages of K and V.

compressed-tensors writes `self_attn.k_scale` and `self_attn.v_scale` of each layer, for all heads
or for each; ModelOpt writes them under `k_proj` and `v_proj`; older checkpoints have one
`kv_scale` for both.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from engine.weights.source import TensorSource
from protocol.model.directory import ModelDirectoryError

KV_SCALE = re.compile(
    r"(?:.*\.)?layers\.(?P<layer>\d+)\.self_attn\.(?:[kv]_proj\.)?(?P<which>k|v|kv)_scale"
)
PLACES = {"k": [0], "v": [1], "kv": [0, 1]}


def static_kv_scales(source: TensorSource, num_layers: int, num_kv_heads: int) -> Tensor | None:
    """Returns [layers, 2, kv_heads] float32: of K and of V, for all heads of the whole model; None
    if the checkpoint has none.

    Raises ModelDirectoryError if they are of some layers only, of another number of heads, or not
    above 0.
    """
    matches = {name: match for name in source.tensors if (match := KV_SCALE.fullmatch(name))}
    if not matches:
        return None
    scales = torch.full((num_layers, 2, num_kv_heads), torch.nan)
    for name, match in matches.items():
        values = source.read(name).float().flatten()
        if len(values) not in (1, num_kv_heads) or int(match["layer"]) >= num_layers:
            raise ModelDirectoryError(
                f"{name} in {source.name} has {len(values)} scales, and the model {num_layers} "
                f"layers of {num_kv_heads} KV heads; config and weights are of different models"
            )
        scales[int(match["layer"]), PLACES[match["which"]]] = values
    if scales.isnan().any():
        raise ModelDirectoryError(
            f"{source.name} have scales for K and V of some layers only; fetch the model again, or "
            "leave --kv-cache-dtype out"
        )
    if not bool((scales > 0).all() & scales.isfinite().all()):
        raise ModelDirectoryError(
            f"{source.name} have scales for K and V that are not above 0; calibrate the model "
            "again, or leave --kv-cache-dtype out"
        )
    return scales
