"""Models of random weights in every form that is compared. Time depends on no weight."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from benchmarks.engines.gguf_export import gguf_name
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from protocol.layout import KVLayout
from protocol.model.gguf.tensor_types import BLOCK_TYPES

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 6,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
"""Layers as those of a Llama of a billion weights, fewer of them: in each form the weights are far
larger than a CPU's caches."""
SIZES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,)}
SIZES |= {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the float16 numbers of a block begin. All other bytes are random."""
SCALE = 1e-4


@dataclass(frozen=True)
class Loaded:
    """A model that our engine has loaded."""

    runner: ModelRunner
    load_s: float
    weight_bytes: int
    """The size of all parameters."""


def load(path: Path, options: EngineOptions, num_pages: Callable[[KVLayout], int]) -> Loaded:
    """Loads the model at `path` on the CPU."""
    started = time.perf_counter()
    runner = load_model_runner(path, options, num_pages, torch.device("cpu"))
    load_s = time.perf_counter() - started
    return Loaded(runner, load_s, sum(each.nbytes for each in runner.model.parameters()))


def save_config(directory: Path) -> Path:
    """Writes config.json, which is all that `--load-format dummy` needs; returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return directory


def save_gguf(target: Path, kind: str) -> Path:
    """Writes the same model with random blocks of one kind to the file `target` and returns it.
    Norms are float32; there is no vocabulary."""
    chance = np.random.default_rng(7)
    writer = gguf.GGUFWriter(target, "llama")
    _add_metadata(writer)
    for name, shape in _shapes(CONFIG).items():
        if len(shape) == 1:
            writer.add_tensor(gguf_name(name), np.ones(shape, dtype=np.float32))
            continue
        blocks = _random_blocks(kind, shape, chance)
        raw_type = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(gguf_name(name), blocks, raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _add_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_name("random")
    writer.add_vocab_size(CONFIG["vocab_size"])
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_key_length(CONFIG["head_dim"])
    writer.add_value_length(CONFIG["head_dim"])
    writer.add_rope_dimension_count(CONFIG["head_dim"])
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_tokenizer_model("no_vocab")


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all tensors by their names in Hugging Face format."""
    hidden, inner, head_dim = (
        config[key] for key in ("hidden_size", "intermediate_size", "head_dim")
    )
    query, key_value = (
        config[key] * head_dim for key in ("num_attention_heads", "num_key_value_heads")
    )
    of_layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    vocabulary = (config["vocab_size"], hidden)
    return {
        "model.embed_tokens.weight": vocabulary,
        "lm_head.weight": vocabulary,
        "model.norm.weight": (hidden,),
        **{
            f"model.layers.{i}.{name}.weight": shape
            for i in range(config["num_hidden_layers"])
            for name, shape in of_layer.items()
        },
    }


def _random_blocks(kind: str, shape: tuple[int, ...], chance: np.random.Generator) -> np.ndarray:
    """Returns uint8 [out, bytes of a row]."""
    block = BLOCK_TYPES[kind]
    num_blocks = shape[1] // block.values
    blocks = chance.integers(0, 256, (shape[0], num_blocks, block.num_bytes), dtype=np.uint8)
    scale = np.frombuffer(np.float16(SCALE).tobytes(), dtype=np.uint8)
    for place in SIZES[kind]:
        blocks[..., place : place + 2] = scale
    return blocks.reshape(shape[0], -1)
