"""Chooses the dtype that a model is computed in, and the one that its weights lie in."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.model.families import UnsupportedModel
from engine.weights.source import TensorInfo
from protocol.layout import DTYPE_BYTES

HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}
"""The dtypes of 16 bits by the names that safetensors has for them."""
OF_PACKED_WEIGHTS = (".values", ".scales", ".zeros", ".blocks")
"""The ends of the names of tensors that forms of packed weights hold (`engine/model/forms`)."""


def resolve_dtype(
    name: str, checkpoint_dtype: str, device: torch.device, cpu_has_amx: bool
) -> torch.dtype:
    """Turns the `--dtype` called `name` into torch's.

    `auto` takes the checkpoint's dtype on CUDA. On a CPU it takes float32, unless the checkpoint is
    bfloat16 and the CPU has AMX tiles. That costs no memory, as weights stay in 16 bits where
    `engine/kernels/native` multiplies them (`half_dtype`), and decoding is as fast.

    Raises UnsupportedModel.
    """
    checkpoint_dtype = checkpoint_dtype.removeprefix("torch.")
    if name == "auto":
        has_amx_form = cpu_has_amx and checkpoint_dtype == "bfloat16"
        name = checkpoint_dtype if device.type == "cuda" or has_amx_form else "float32"
    if name not in DTYPE_BYTES:
        raise UnsupportedModel(
            f"the engine cannot compute in {name}; choose one of {', '.join(DTYPE_BYTES)} "
            "with --dtype"
        )
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def half_dtype(tensors: Mapping[str, TensorInfo]) -> torch.dtype | None:
    """Returns the dtype of 16 bits that all plain weights of a checkpoint have, so that they may
    lie in it unchanged while the model is computed in float32. None: they have another one, or
    several. Packed weights have dtypes of their own, and do not count."""
    plain = (info for name, info in tensors.items() if not name.endswith(OF_PACKED_WEIGHTS))
    found = {info.dtype for info in plain if len(info.shape) > 1}
    return HALVES.get(found.pop()) if len(found) == 1 else None


def cpu_multiplies_bfloat16() -> bool:
    """Says whether this machine's CPU has instructions for products of bfloat16."""
    return cpu_has_amx() or bool(torch.cpu._is_avx512_bf16_supported())


def cpu_has_amx() -> bool:
    """Says whether this machine's CPU multiplies tiles of bfloat16 in hardware."""
    return bool(torch.cpu._is_amx_tile_supported())
