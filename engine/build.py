"""Puts a `ModelRunner` together from a model directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.fingerprint import model_fingerprint
from engine.kernels import TorchKernels
from engine.kv_cache import KVCache
from engine.linear import Build, kv_head_share
from engine.loader import Progress, dummy_model, load_model, resolve_dtype
from engine.model_config import ModelConfig
from engine.parallel import SOLO, TensorParallel
from engine.runner import ModelRunner
from engine.torch_attention import TorchAttention
from protocol.layout import KVLayout


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

    Raises ModelDirectoryError or UnsupportedModel.
    """
    config = ModelConfig.from_directory(path, options.context_length)
    dtype = resolve_dtype(options.dtype, config, device)
    build = Build(dtype, device, TorchKernels(), parallel)
    is_dummy = options.load_format == "dummy"
    if is_dummy:
        model = dummy_model(config, build, progress)
    else:
        model = load_model(path, config, build, progress)
    layout = KVLayout(
        page_size=options.page_size,
        num_layers=config.num_layers,
        num_kv_heads=len(kv_head_share(config.num_kv_heads, parallel)),
        head_dim=config.head_dim,
        dtype=str(dtype).removeprefix("torch."),
    )
    kv_cache = KVCache(layout, num_pages(layout), device)
    fingerprint = model_fingerprint(path, _variant(config), is_dummy)
    return ModelRunner(model, kv_cache, TorchAttention(), fingerprint, device)


def _variant(config: ModelConfig) -> str:
    """What decides about the KV and is in no file: which of its two tables longrope uses."""
    tables = [layer.rope.divisors for layer in config.layers if layer.rope.kind == "longrope"]
    return repr(tables[0]) if tables else ""
