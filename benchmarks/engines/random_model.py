"""A model of random weights, large enough that computing a prompt takes a CPU some time.

A Llama of 23.6 million weights in its layers, float32. Words are t0, t1, …, one for each token id.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

VOCABULARY = 2048
END = 2
MAX_TOKENS = 16_384
NUM_LAYERS, HIDDEN, INTERMEDIATE = 8, 512, 1408
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 8, 4, 64
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": NUM_KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": MAX_TOKENS,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "eos_token_id": END,
    "dtype": "float32",
}


def save_random_model(path: Path, config: Mapping[str, Any] = CONFIG) -> None:
    """Writes the model, the same one every time, into the directory `path`.

    `config` is of a Llama without biases; the weights are float32 whatever it says.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(_weights(config), path / "model.safetensors")
    words = {f"t{i}": i for i in range(config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, "t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))


class Prompts:
    """New ones each time: no two begin with the same page."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def new(self, num_tokens: int) -> list[int]:
        """Ids, without the one that ends an answer."""
        return [self._chance.randrange(END + 1, VOCABULARY) for _ in range(num_tokens)]


def _weights(config: Mapping[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(7)
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    intermediate, head_dim = config["intermediate_size"], config["head_dim"]
    query = config["num_attention_heads"] * head_dim
    key_value = config["num_key_value_heads"] * head_dim
    weights = {
        "model.embed_tokens.weight": _normal(vocabulary, hidden),
        "model.norm.weight": torch.ones(hidden),
    }
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{norm}.weight"] = torch.ones(hidden)
        weights |= {
            f"{prefix}.self_attn.q_proj.weight": _normal(query, hidden),
            f"{prefix}.self_attn.k_proj.weight": _normal(key_value, hidden),
            f"{prefix}.self_attn.v_proj.weight": _normal(key_value, hidden),
            f"{prefix}.self_attn.o_proj.weight": _normal(hidden, query),
            f"{prefix}.mlp.gate_proj.weight": _normal(intermediate, hidden),
            f"{prefix}.mlp.up_proj.weight": _normal(intermediate, hidden),
            f"{prefix}.mlp.down_proj.weight": _normal(hidden, intermediate),
        }
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = _normal(vocabulary, hidden)
    return weights


def _normal(rows: int, columns: int) -> Tensor:
    """[out, in], with the spread of Llama's initial weights."""
    return torch.randn(rows, columns) * 0.02
