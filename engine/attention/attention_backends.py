"""Chooses the attention back end of a node by what its device and the installed packages can do.

CUDA, half precision   flash (if a flash-attn is installed), else triton
CUDA, float32          triton
CUDA, FP8 pages        triton
CPU, float32           native (if there is a C compiler), else torch
everything else        torch
"""

from __future__ import annotations

from ctypes import CDLL
from importlib.util import find_spec

import torch

from engine.attention.backend import AttentionBackend
from engine.attention.deterministic_attention import DeterministicAttention
from engine.attention.native_attention import NativeAttention
from engine.attention.torch_attention import TorchAttention
from protocol.errors import UserError
from protocol.layout import FP8, KVLayout

HALF = ("bfloat16", "float16")
MAX_HEAD_DIM = 128
"""The largest head that every version of flash-attn takes on every GPU of the last generations."""


class AttentionUnavailable(UserError):
    """The attention back end that was asked for cannot be used here; the message has the remedy."""


def make_attention(
    name: str,
    has_softcap: bool,
    layout: KVLayout,
    device: torch.device,
    deterministic: bool = False,
    library: CDLL | None = None,
) -> AttentionBackend:
    """Makes the back end called `name`: auto, flash, varlen, triton, native or torch.

    `has_softcap` says that the model caps its scores. `library` has the native kernels, and is None
    where they cannot be compiled or are not wanted. Raises AttentionUnavailable.
    """
    if deterministic:
        if name not in ("auto", "torch"):
            raise AttentionUnavailable(
                f"--deterministic has an attention of its own; leave --attention-backend {name} out"
            )
        return DeterministicAttention()
    if name == "native" or (name == "auto" and library is not None):
        if library is None:
            raise AttentionUnavailable(
                "--attention-backend native needs a CPU, --dtype float32 and a C compiler; install "
                "gcc and leave --no-native-kernels out, or use torch or auto"
            )
        return NativeAttention(library)
    if name == "torch" or (name == "auto" and not has_triton(device)):
        return TorchAttention()
    if device.type != "cuda":
        raise AttentionUnavailable(
            f"--attention-backend {name} needs a CUDA device; use torch or auto on {device}"
        )
    if not has_triton(device):
        raise AttentionUnavailable(
            f"--attention-backend {name} needs the package triton, which is not installed"
        )
    return _on_cuda(name, has_softcap, layout, device)


def captures(attention: AttentionBackend) -> bool:
    """Says whether a step of single tokens can be recorded in a CUDA graph, which requires that no
    plan on the host depends on lengths."""
    return not isinstance(attention, NativeAttention | TorchAttention | DeterministicAttention)


def has_triton(device: torch.device) -> bool:
    """Returns True if Triton kernels can run on `device`."""
    return device.type == "cuda" and find_spec("triton") is not None


def _on_cuda(
    name: str, has_softcap: bool, layout: KVLayout, device: torch.device
) -> AttentionBackend:
    # Not at the top of the file: these import triton, which machines without a GPU do not have.
    from engine.attention.flash_attention import (
        FlashAttention,
        flash_attention_kernel,
        varlen_kernel,
    )
    from engine.attention.triton_attention import TritonAttention

    triton = TritonAttention.on(device)
    if name == "triton":
        return triton
    refusal = _refusal(name, has_softcap, layout)
    if not refusal:
        kernel = (
            varlen_kernel()
            if name == "varlen"
            else flash_attention_kernel(layout.page_size, device)
        )
        if kernel is not None:
            return FlashAttention(*kernel, triton)
        refusal = (
            "this torch has no varlen_attn with page tables; use torch 2.12 or newer"
            if name == "varlen"
            else "no flash-attn is installed that takes these pages; install flash-attn-4, or "
            "flash-attn 2 and use --page-size 256"
        )
    if name == "auto":
        return triton
    raise AttentionUnavailable(f"--attention-backend {name}: {refusal}")


def _refusal(name: str, has_softcap: bool, layout: KVLayout) -> str:
    """Returns why the library's kernels cannot serve this model; "" if they can."""
    if layout.dtype == FP8:
        return "it does not read FP8 pages; use triton, or leave --kv-cache-dtype out"
    if layout.dtype not in HALF:
        return f"it computes in half precision only; use --dtype {HALF[0]}, or triton"
    if layout.head_dim > MAX_HEAD_DIM or layout.head_dim % 8:
        return f"it does not take heads of {layout.head_dim}; use triton"
    if name == "varlen" and has_softcap:
        return "it cannot cap scores, as this model does; use flash or triton"
    return ""
