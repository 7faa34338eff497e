"""`ModelRunner`: slices in, tokens out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from engine.attention import AttentionBackend, TorchAttention
from engine.batch import Batch
from engine.fingerprint import model_fingerprint
from engine.kv_cache import KVCache
from engine.loader import Progress, load_model, resolve_dtype
from engine.model import DecoderModel, OnLayer
from engine.model_config import ModelConfig
from engine.request import Slice
from engine.sampler import sample
from protocol.layout import KVLayout


class ModelRunner:
    """One model on one device with its KV pool. Not thread-safe."""

    def __init__(
        self,
        model: DecoderModel,
        kv_cache: KVCache,
        attention: AttentionBackend,
        fingerprint: str,
        device: torch.device,
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.attention = attention
        self.fingerprint = fingerprint
        self.device = device

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def layout(self) -> KVLayout:
        return self.kv_cache.layout

    @torch.inference_mode()
    def run(self, slices: Sequence[Slice], on_layer: OnLayer | None = None) -> list[int | None]:
        """Computes one step; the sampled token of each slice, None where none was wanted.

        `on_layer`: as `DecoderModel.forward` calls it.
        """
        batch = Batch.build(slices, self.layout.page_size, self.device)
        logits = self.model(batch, self.kv_cache, self.attention, on_layer)
        if not batch.samplings:
            return [None] * len(slices)
        tokens = iter(sample(logits, batch.samplings, batch.sample_positions).tolist())
        return [next(tokens) if s.sampling is not None else None for s in slices]


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
    attention = TorchAttention(config.sliding_window)
    return ModelRunner(model, kv_cache, attention, model_fingerprint(path), device)
