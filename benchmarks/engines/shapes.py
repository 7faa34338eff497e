"""Model shapes by name, and directories of random weights in them. Time depends on no weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.engines.random_model import save_random_model

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": _LLAMA
    | {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
        "dtype": "float32",
    },
    "llama-1b-4-layers": _LLAMA
    | {
        # Four layers of Llama 3.2 1B and a small vocabulary: 1.2 GB, which no CPU's cache holds.
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": True,
        "dtype": "float32",
    },
    "llama-3-8b": _LLAMA
    | {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131_072,  # 3.1's, so that 32k of context are no error
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "llama-3-70b": _LLAMA
    | {
        "vocab_size": 128_256,
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
}


def save_shape(name: str, path: Path) -> None:
    """Only config.json, for `load_format="dummy"`."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(SHAPES[name], indent=1) + "\n")


def save_model(name: str, path: Path) -> None:
    """config.json, random float32 weights and a tokenizer: the same every time."""
    save_random_model(path, SHAPES[name])
