"""Weights from *.safetensors into `DecoderModel`, tensor by tensor, never two copies of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from engine.fingerprint import weight_files
from engine.model import DecoderModel
from engine.model_config import ModelConfig, ModelDirectoryError

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)."""


def resolve_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """`auto`: the checkpoint's on CUDA, float32 on CPUs."""
    if name == "auto":
        name = config.checkpoint_dtype if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name.removeprefix("torch."))
    return dtype


def load_model(
    path: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
) -> DecoderModel:
    """Raises ModelDirectoryError that names what is missing or of another shape."""
    with torch.device("meta"):
        model = DecoderModel(config)
    model = model.to(dtype).to_empty(device=device)
    if config.tie_word_embeddings:
        model.head.weight = model.embedding.weight
    model.requires_grad_(False)
    targets = dict(_targets(model))
    files = weight_files(path)
    total, done = sum(target.nbytes for target in targets.values()), 0
    for file in files:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open is no dict)
                target = targets.pop(name, None)
                if target is None:
                    continue  # rotary buffers of old checkpoints, a tied head
                weight = tensors.get_tensor(name)
                if weight.shape != target.shape:
                    raise ModelDirectoryError(
                        f"{file.name}: {name} is {list(weight.shape)}, config.json asks for "
                        f"{list(target.shape)}; config and weights are of different models"
                    )
                target.copy_(weight)
                done += target.nbytes
                if progress is not None:
                    progress(done, total)
    if targets:
        first, *others = targets
        more = f" and {len(others)} more" if others else ""
        raise ModelDirectoryError(
            f"the *.safetensors in {path} lack {first}{more}; fetch the model again"
        )
    return model.eval()


def _targets(model: DecoderModel) -> Iterator[tuple[str, Any]]:
    """Where each tensor of a Hugging Face checkpoint goes: a parameter, or rows of a fused one."""
    config = model.config
    yield "model.embed_tokens.weight", model.embedding.weight
    yield "model.norm.weight", model.norm.weight
    if not config.tie_word_embeddings:
        yield "lm_head.weight", model.head.weight
    for i, layer in enumerate(model.layers):
        prefix = f"model.layers.{i}"
        yield f"{prefix}.input_layernorm.weight", layer.attention_norm.weight
        yield f"{prefix}.post_attention_layernorm.weight", layer.feed_forward_norm.weight
        attention, feed_forward = layer.attention, layer.feed_forward
        if config.qk_norm:
            yield f"{prefix}.self_attn.q_norm.weight", attention.q_norm
            yield f"{prefix}.self_attn.k_norm.weight", attention.k_norm
        halves = [config.intermediate_size] * 2
        for kind in ("weight", "bias"):
            parts = (
                ("self_attn", ("q_proj", "k_proj", "v_proj"), attention.qkv, attention.sizes),
                ("self_attn", ("o_proj",), attention.out, [config.hidden_size]),
                ("mlp", ("gate_proj", "up_proj"), feed_forward.gate_up, halves),
                ("mlp", ("down_proj",), feed_forward.down, [config.hidden_size]),
            )
            for block, names, linear, sizes in parts:
                fused = getattr(linear, kind)
                if fused is not None:
                    for name, rows in zip(names, fused.split(sizes), strict=True):
                        yield f"{prefix}.{block}.{name}.{kind}", rows
