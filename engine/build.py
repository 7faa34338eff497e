"""Puts a `ModelRunner` together from a model directory."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CDLL
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.attention.attention_backends import captures, has_triton, make_attention
from engine.cache.kv_cache import KVCache
from engine.kernels.base import Kernels, TorchKernels
from engine.kernels.deterministic_kernels import DeterministicKernels
from engine.kernels.few_sizes_kernels import FewSizesKernels
from engine.kernels.native.build import native_library
from engine.kernels.native_kernels import NativeKernels
from engine.model.config import ModelConfig
from engine.model.linear import Build, kv_head_share
from engine.parallel import SOLO, TensorParallel
from engine.steps.cuda_graphs import DecodeGraphs
from engine.steps.runner import ModelRunner
from engine.weights.fingerprint import model_fingerprint
from engine.weights.loader import Progress, dummy_model, load_model, resolve_dtype
from protocol.layout import KVLayout

NATIVE = ("cpu", torch.float32)
"""What native kernels compute on, and in."""


@dataclass(frozen=True)
class EngineOptions:
    """How a model is computed; what a node's flags of the same names say."""

    dtype: str = "auto"
    page_size: int = 16
    load_format: str = "auto"
    """auto: the directory's weights; dummy: random ones of the configured shape."""
    attention_backend: str = "auto"
    deterministic: bool = False
    """Logits do not depend on what else is in a batch, on chunks or on cache hits."""
    context_length: int = 0
    """Longest sequence that is served; 0: the model's own limit."""
    max_running_requests: int = 64
    """Most sequences in one decode step; on CUDA, graphs are recorded up to this size."""
    native_kernels: bool = True
    """On a CPU in float32, where they can be compiled; `deterministic` has its own."""


def load_model_runner(
    path: Path,
    options: EngineOptions,
    num_pages: Callable[[KVLayout], int],
    device: torch.device,
    parallel: TensorParallel = SOLO,
    progress: Progress | None = None,
) -> ModelRunner:
    """Loads this rank's part of a model directory, then makes a KV pool of `num_pages(layout)`
    pages; `ModelRunner.layout` is what this rank's pool holds.

    Raises ModelDirectoryError, UnsupportedModel or AttentionUnavailable.
    """
    config = ModelConfig.from_directory(path, options.context_length)
    dtype = resolve_dtype(options.dtype, config, device)
    layout = KVLayout(
        page_size=options.page_size,
        num_layers=config.num_layers,
        num_kv_heads=len(kv_head_share(config.num_kv_heads, parallel)),
        head_dim=config.head_dim,
        dtype=str(dtype).removeprefix("torch."),
    )
    library = _native_library(options, device, dtype)
    attention = make_attention(
        options.attention_backend,
        config.attention_softcap is not None,
        layout,
        device,
        options.deterministic,
        library,
    )
    build = Build(dtype, device, _kernels(options, device, dtype, library), parallel)
    is_dummy = options.load_format == "dummy"
    if is_dummy:
        model = dummy_model(config, build, progress)
    else:
        model = load_model(path, config, build, progress)
    kv_cache = KVCache(layout, num_pages(layout), device)
    fingerprint = model_fingerprint(path, _variant(config, options), is_dummy)
    graphs = None
    if captures(attention) and (config.experts is None or _groups_are_static(dtype, device)):
        longest = options.context_length or config.max_position_embeddings
        longest = min(longest, kv_cache.num_pages * options.page_size)
        graphs = DecodeGraphs(
            model,
            kv_cache,
            attention,
            device,
            options.max_running_requests,
            layout.num_pages(longest),
        )
    return ModelRunner(model, kv_cache, attention, fingerprint, device, graphs)


def _native_library(
    options: EngineOptions, device: torch.device, dtype: torch.dtype
) -> CDLL | None:
    is_wanted = options.native_kernels and not options.deterministic
    return native_library() if is_wanted and (device.type, dtype) == NATIVE else None


def _kernels(
    options: EngineOptions, device: torch.device, dtype: torch.dtype, library: CDLL | None
) -> Kernels:
    if options.deterministic:
        return DeterministicKernels(TorchKernels())
    if library is not None:
        return NativeKernels(library)
    if device.type == "cpu" and dtype != torch.float32:
        return FewSizesKernels()
    if not has_triton(device):
        return TorchKernels()
    from engine.kernels.triton_kernels import (
        TritonKernels,  # imports triton, which a CPU machine has not
    )

    return TritonKernels()


def _groups_are_static(dtype: torch.dtype, device: torch.device) -> bool:
    """torch's grouped_mm asks the device for no sizes: in bfloat16, on Hopper and Blackwell."""
    return dtype == torch.bfloat16 and torch.cuda.get_device_capability(device)[0] in (9, 10)


def _variant(config: ModelConfig, options: EngineOptions) -> str:
    """What decides about the KV and is in no file: which of its two tables longrope uses, and
    whether its bits depend on what else was computed."""
    tables = [layer.rope.divisors for layer in config.layers if layer.rope.kind == "longrope"]
    variant = [repr(tables[0])] if tables else []
    if options.deterministic:
        variant.append("deterministic")
    return ", ".join(variant)
