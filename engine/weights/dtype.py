"""Chooses the dtype that a model is computed in."""

from __future__ import annotations

import torch

from engine.model.families import UnsupportedModel
from protocol.layout import DTYPE_BYTES


def resolve_dtype(
    name: str, checkpoint_dtype: str, device: torch.device, cpu_has_amx: bool
) -> torch.dtype:
    """Turns the `--dtype` called `name` into torch's.

    `auto` takes the checkpoint's dtype on CUDA. On a CPU it takes float32, unless the checkpoint is
    bfloat16 and the CPU has AMX tiles. The AVX-512 instructions for bfloat16 do not count: with
    them decoding is slower than with the float32 kernels of `engine/kernels/native`.

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


def cpu_has_amx() -> bool:
    """Says whether this machine's CPU multiplies tiles of bfloat16 in hardware."""
    return bool(torch.cpu._is_amx_tile_supported())
