"""Puts a `ModelRunner` together from a model directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from engine.fingerprint import model_fingerprint
from engine.kv_cache import KVCache
from engine.loader import Progress, load_model, resolve_dtype
from engine.model_config import ModelConfig
from engine.runner import ModelRunner
from engine.torch_attention import TorchAttention
from protocol.layout import KVLayout


def load_model_runner(
    path: Path,
    dtype: str,
    page_size: int,
    num_pages: Callable[[KVLayout], int],
    device: torch.device,
    progress: Progress | None = None,
) -> ModelRunner:
    """Loads a model directory, then makes a KV pool of `num_pages(layout)` pages.

    Raises ModelDirectoryError or UnsupportedModel.
    """
    config = ModelConfig.from_directory(path)
    torch_dtype = resolve_dtype(dtype, config, device)
    model = load_model(path, config, torch_dtype, device, progress)
    layout = KVLayout(
        page_size=page_size,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=str(torch_dtype).removeprefix("torch."),
    )
    kv_cache = KVCache(layout, num_pages(layout), device)
    return ModelRunner(model, kv_cache, TorchAttention(), model_fingerprint(path), device)
