"""Puts a `ModelRunner` together from a model directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path

import torch

from engine.attention.attention_backends import captures, has_triton, make_attention
from engine.attention.backend import AttentionBackend
from engine.cache.kv_cache import KVCache
from engine.cache.make_cache import make_cache
from engine.compile_cache import cache_directory, name_cache
from engine.compile_counts import CompileCounter, Count, flash4_compiles, triton_compiles
from engine.dependent_launch import launches_dependently
from engine.errors import OptionUnavailable
from engine.kernels.base import Kernels, TorchKernels
from engine.kernels.deterministic_kernels import DeterministicKernels
from engine.kernels.few_sizes_kernels import FewSizesKernels
from engine.kernels.native.build import native_library, num_native_builds
from engine.kernels.native_kernels import NativeKernels
from engine.model.config import ModelConfig
from engine.model.decoder import DecoderModel
from engine.model.linear import Build, kv_head_share
from engine.options import EngineOptions
from engine.parallel import SOLO, TensorParallel
from engine.pinned_memory import reserve_pinned_memory
from engine.steps.cuda_graphs import DecodeGraphs
from engine.steps.runner import ModelRunner
from engine.weights.checkpoint import open_checkpoint
from engine.weights.dtype import (
    HALVES,
    cpu_has_amx,
    cpu_multiplies_bfloat16,
    half_dtype,
    resolve_dtype,
)
from engine.weights.fingerprint import model_fingerprint
from engine.weights.loader import Progress, dummy_model, load_model
from engine.weights.pages.page_form import PageForm, page_form
from engine.weights.source import TensorSource
from protocol.layout import KVLayout
from protocol.model.tokenizer import load_tokenizer


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

    Raises ModelDirectoryError, UnsupportedModel, AttentionUnavailable or OptionUnavailable.
    """
    name_cache(cache_directory(options.compile_cache), os.environ)
    counts: list[Count] = [num_native_builds, flash4_compiles]
    if has_triton(device):
        counts.append(triton_compiles())
    checkpoint = open_checkpoint(path, options)
    config = ModelConfig.from_config(checkpoint.config, path, options.context_length)
    dtype = resolve_dtype(options.dtype, config.checkpoint_dtype, device, cpu_has_amx())
    pages = page_form(options.kv_cache_dtype, dtype, checkpoint.source, config)
    kv_heads = kv_head_share(config.num_kv_heads, parallel)
    layout = KVLayout(
        page_size=options.page_size,
        num_layers=config.num_layers,
        num_kv_heads=len(kv_heads),
        head_dim=config.head_dim,
        dtype=pages.dtype,
        scales=pages.scales,
    )
    library = _native_library(options, device, dtype)
    attention = make_attention(
        options.attention_backend,
        config.attention_softcap is not None,
        layout,
        device,
        options.deterministic,
        library if dtype == torch.float32 else None,
    )
    # Sums over ranks come from a stream of NCCL's own, which dependent launches know nothing of.
    is_dependent = parallel.size == 1 and launches_dependently(device)
    kernels = _kernels(options, device, dtype, library, is_dependent)
    is_native = isinstance(kernels, NativeKernels)
    weight_dtype = _weight_dtype(config, checkpoint.source) if is_native else None
    build = Build(dtype, device, kernels, parallel, checkpoint.form_of, weight_dtype)
    if checkpoint.source is None:
        model = dummy_model(config, build, progress)
    else:
        model = load_model(checkpoint.source, config, build, progress)
    kv_cache = make_cache(layout, num_pages(layout), device, pages.scales_of(kv_heads), library)
    variant = _variant(config, options, checkpoint.arithmetic, pages)
    fingerprint = model_fingerprint(checkpoint.config, checkpoint.stored, variant)
    graphs = None
    if captures(attention) and (config.experts is None or _groups_are_static(dtype, device)):
        recorded = graphs = _decode_graphs(model, kv_cache, attention, device, options, config)
        counts.append(lambda: recorded.num_recorded)
    reserve_pinned_memory(device)
    return ModelRunner(
        model,
        kv_cache,
        attention,
        fingerprint,
        device,
        graphs,
        read_tokenizer=lambda: load_tokenizer(path).json_text,
        library=library,
        compiles=CompileCounter(counts),
    )


def _decode_graphs(
    model: DecoderModel,
    kv_cache: KVCache,
    attention: AttentionBackend,
    device: torch.device,
    options: EngineOptions,
    config: ModelConfig,
) -> DecodeGraphs:
    longest = options.context_length or config.context_length
    longest = min(longest, kv_cache.num_pages * options.page_size)
    max_pages = kv_cache.layout.num_pages(longest)
    return DecodeGraphs(model, kv_cache, attention, device, options.max_running_requests, max_pages)


def _native_library(
    options: EngineOptions, device: torch.device, dtype: torch.dtype
) -> CDLL | None:
    """Raises OptionUnavailable if an option needs the library and it is not there."""
    is_wanted = not options.no_native_kernels and not options.deterministic
    library = None
    if is_wanted and device.type == "cpu":
        library = native_library(cache_directory(options.compile_cache))
    if options.cpu_int8_activations and (library is None or dtype != torch.float32):
        raise OptionUnavailable(
            "--cpu-int8-activations needs a CPU, --dtype float32 and a C compiler; install gcc, or "
            "leave the flag out at all nodes"
        )
    return library


def _kernels(
    options: EngineOptions,
    device: torch.device,
    dtype: torch.dtype,
    library: CDLL | None,
    is_dependent: bool,
) -> Kernels:
    if options.deterministic:
        return DeterministicKernels(TorchKernels())
    rounds_inputs = options.cpu_int8_activations
    native = None if library is None else NativeKernels(library, rounds_inputs)
    if device.type == "cpu" and dtype != torch.float32:
        return FewSizesKernels(native, dtype == torch.bfloat16 and cpu_multiplies_bfloat16())
    if native is not None:
        return native
    if not has_triton(device):
        return TorchKernels()
    from engine.kernels.triton_kernels import (
        TritonKernels,  # imports triton, which a CPU machine has not
    )

    return TritonKernels(is_dependent)


def _weight_dtype(config: ModelConfig, source: TensorSource | None) -> torch.dtype | None:
    """Returns what weights lie in while native kernels compute in float32; None: in float32 too."""
    if source is not None:
        return half_dtype(source.tensors)
    dtype = getattr(torch, config.checkpoint_dtype.removeprefix("torch."), None)
    return dtype if dtype in HALVES.values() else None


def _groups_are_static(dtype: torch.dtype, device: torch.device) -> bool:
    """Returns True if torch's grouped_mm asks the device for no sizes: in bfloat16, on Hopper and
    Blackwell."""
    return dtype == torch.bfloat16 and torch.cuda.get_device_capability(device)[0] in (9, 10)


def _variant(config: ModelConfig, options: EngineOptions, arithmetic: str, pages: PageForm) -> str:
    """Returns what decides about the KV and is in no file of the model: which of its two tables
    longrope uses, how packed weights are multiplied, whether bits depend on what else was computed,
    and how pages round."""
    tables = [layer.rope.divisors for layer in config.layers if layer.rope.kind == "longrope"]
    variant = [repr(tables[0])] if tables else []
    if arithmetic:
        variant.append(arithmetic)
    if options.cpu_int8_activations:
        variant.append("int8 activations")
    if options.deterministic:
        variant.append("deterministic")
    if pages.variant:
        variant.append(pages.variant)
    return ", ".join(variant)
