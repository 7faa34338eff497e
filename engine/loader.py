"""Weights from *.safetensors into `DecoderModel`, tensor by tensor, never two copies of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.fingerprint import weight_files
from engine.model import DecoderModel
from engine.model_config import ModelConfig, UnsupportedModel
from protocol.layout import DTYPE_BYTES
from protocol.model_directory import ModelDirectoryError, read_json

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)."""


def resolve_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """`auto`: the checkpoint's on CUDA, float32 on CPUs. Raises UnsupportedModel."""
    if name == "auto":
        name = config.checkpoint_dtype if device.type == "cuda" else "float32"
    name = name.removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise UnsupportedModel(
            f"the engine cannot compute in {name}; choose one of {', '.join(DTYPE_BYTES)} "
            "with --dtype"
        )
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_model(
    path: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
) -> DecoderModel:
    """Raises ModelDirectoryError that names what is missing, unknown or of another shape."""
    with torch.device("meta"):
        model = DecoderModel(config)
    model = model.to(dtype).to_empty(device=device)
    if config.tie_word_embeddings:
        model.head.weight = model.embedding.weight
    model.requires_grad_(False)
    targets = dict(_targets(model))
    total, done = sum(target.nbytes for target in targets.values()), 0
    unknown: list[str] = []
    for name, weight in _tensors(_files_of_model(path)):
        target = targets.pop(name, None)
        if target is None:
            unknown.append(name)
            continue
        if weight.shape != target.shape:
            raise ModelDirectoryError(
                f"{name} in {path} is {list(weight.shape)}, config.json asks for "
                f"{list(target.shape)}; config and weights are of different models"
            )
        target.copy_(weight)
        done += target.nbytes
        if progress is not None:
            progress(done, total)
    if targets:
        raise ModelDirectoryError(
            f"the *.safetensors in {path} lack {_some(targets)}; fetch the model again"
        )
    unknown = [name for name in unknown if not _is_superfluous(name, config)]
    if unknown:
        raise ModelDirectoryError(
            f"the *.safetensors in {path} hold {_some(unknown)}, which a {config.architecture} "
            "with this config.json does not have; config and weights are of different models"
        )
    return model.eval()


def _files_of_model(path: Path) -> list[Path]:
    """Those the index names, or model.safetensors, before whatever else lies there."""
    index = read_json(path / "model.safetensors.index.json")
    if index is not None:
        shards = index.get("weight_map")
        if not isinstance(shards, dict):
            raise ModelDirectoryError(
                f"{path}/model.safetensors.index.json has no weight_map; fetch the model again"
            )
        return [path / str(name) for name in sorted(set(shards.values()))]
    single = path / "model.safetensors"
    return [single] if single.is_file() else weight_files(path)


def _tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    for file in files:
        try:
            with safe_open(file, framework="pt", device="cpu") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (safe_open is no dict)
                    yield name, tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelDirectoryError(
                f"{file} cannot be read ({error}); fetch the model again, and if git did it, "
                "with git lfs pull"
            ) from error


def _is_superfluous(name: str, config: ModelConfig) -> bool:
    """Rotary buffers of old checkpoints; a head that is the embedding anyway."""
    is_tied_head = name == "lm_head.weight" and config.tie_word_embeddings
    return is_tied_head or name.endswith("rotary_emb.inv_freq")


def _some(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first} and {len(others)} more" if others else first


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
