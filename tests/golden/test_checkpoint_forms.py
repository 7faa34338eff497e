"""Checkpoints as they are published, and as the newest transformers may write them, are the same
model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.build import load_model_runner
from engine.options import EngineOptions
from tests.support.engine.driving import CPU, PAGE_SIZE, Sequences, prompt_of
from tests.support.models.families import save_model_that_sees, save_random_model

NORM = "norm.weight"


def logits_of(path: Path, vocab_size: int = 199) -> Tensor:
    runner = load_model_runner(path, EngineOptions("float32", PAGE_SIZE), lambda _: 10, CPU)
    return Sequences(runner).logits(prompt_of(100, vocab_size))


def published(config: dict[str, Any]) -> dict[str, Any]:
    """The same settings as transformers 4 wrote them."""
    config = dict(config)
    rope = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    if "num_local_experts" in config and config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
        del config["layer_types"]
    config["rope_theta"] = rope.pop("rope_theta")
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if config["model_type"] == "phi3" and key in rope:
            config[key] = rope.pop(key)
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    return config


@pytest.mark.parametrize("family", ["llama3", "gemma3", "phi4-mini", "qwen3-yarn", "qwen3-moe"])
def test_published_configs(family: str, tmp_path: Path) -> None:
    save_random_model(family, tmp_path)
    expected = logits_of(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(published(config)))
    assert torch.equal(logits_of(tmp_path), expected)


@pytest.mark.parametrize("stem", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_model_that_sees(stem: str, tmp_path: Path) -> None:
    reference = save_model_that_sees(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    [saved] = [name[: -len(NORM)] for name in tensors if name.endswith(f"model.{NORM}")]
    save_file({name.replace(saved, stem): tensor for name, tensor in tensors.items()}, file)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt_of(100, 198)])).logits[0, -1]
    assert (logits_of(tmp_path, vocab_size=198) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe"])
def test_experts_in_one_tensor(family: str, tmp_path: Path) -> None:
    save_random_model(family, tmp_path)
    expected = logits_of(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for file in [*shards, tmp_path / "model.safetensors.index.json"]:
        file.unlink()
    save_file(with_fused_experts(tensors), tmp_path / "model.safetensors")
    assert torch.equal(logits_of(tmp_path), expected)


def with_fused_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    result, experts = {}, dict[str, dict[str, list[Tensor]]]()
    names = {"w1": "gate", "gate_proj": "gate", "w3": "up", "up_proj": "up"}
    for name, tensor in sorted(tensors.items()):  # by expert: there are fewer than ten
        block, found, rest = name.replace("block_sparse_moe", "mlp").partition(".experts.")
        if not found:
            result[block] = tensor
            continue
        kind = names.get(rest.split(".")[1], "down")
        experts.setdefault(f"{block}.experts", {}).setdefault(kind, []).append(tensor)
    for block, by_kind in experts.items():
        gate, up, down = (torch.stack(by_kind[kind]) for kind in ("gate", "up", "down"))
        result[f"{block}.gate_up_proj"] = torch.cat((gate, up), dim=1)
        result[f"{block}.down_proj"] = down
    return result
