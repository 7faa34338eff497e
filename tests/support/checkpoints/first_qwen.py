"""Model directories as the first generation of Qwen was published.

Up to the trained length it computes what a Qwen2 does whose every head has keys of its own: a bias
on q, k and v alone, halves of a head that are rotated against each other, and a feed-forward gated
by silu. So a Qwen2 of transformers, saved under the other names, is what it is compared with.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PUBLISHED: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "attn_dropout_prob": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "fp16": False,
    "fp32": True,
    "initializer_range": 0.02,
    "model_type": "qwen",
    "no_bias": True,
    "onnx_safe": None,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "transformers_version": "4.32.0",
    "use_cache": True,
    "use_cache_kernel": False,
    "use_cache_quantization": False,
    "use_dynamic_ntk": True,
    "use_flash_attn": "auto",
    "use_logn_attn": True,
}
"""A published config.json, but for its sizes."""
CHAT = {"chat_format": "chatml", "eos_token_id": 0, "max_window_size": 6144, "top_p": 0.8}
"""A published generation_config.json, whose end token is any."""
ENDS = {
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.w1",
    "mlp.gate_proj": "mlp.w2",
    "mlp.down_proj": "mlp.c_proj",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
}


def write_as_first_qwen(path: Path) -> None:
    """Rewrites a Qwen2 that transformers saved in `path`."""
    config = json.loads((path / "config.json").read_text())
    assert config["num_key_value_heads"] == config["num_attention_heads"]
    shards = sorted(path.glob("*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for file in [*shards, path / "model.safetensors.index.json"]:
        file.unlink(missing_ok=True)
    save_file(as_first_qwen(tensors), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config_of(config)))


def config_of(qwen2: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the published config.json of a model with the sizes of this Qwen2."""
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    return {
        **PUBLISHED,
        **{key: qwen2[key] for key in sizes},
        "kv_channels": qwen2["hidden_size"] // qwen2["num_attention_heads"],
        "intermediate_size": 2 * qwen2["intermediate_size"],
        "layer_norm_epsilon": qwen2["rms_norm_eps"],
        "seq_length": qwen2["max_position_embeddings"],
        "max_position_embeddings": 4 * qwen2["max_position_embeddings"],
    }


def as_first_qwen(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of a Qwen2 under the names of the first generation."""
    renamed = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        _, _, inner = module.removeprefix("model.layers.").partition(".")
        stem = module.removesuffix(f".{inner}").replace("model.layers.", "transformer.h.")
        if inner in ENDS:
            renamed[f"{stem}.{ENDS[inner]}.{kind}"] = tensor
        elif inner == "self_attn.q_proj":
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            renamed[f"{stem}.attn.c_attn.{kind}"] = torch.cat(parts)
    return renamed | {
        "transformer.wte.weight": tensors["model.embed_tokens.weight"],
        "transformer.ln_f.weight": tensors["model.norm.weight"],
        "lm_head.weight": tensors["lm_head.weight"],
    }


def write_ranks(path: Path, ranks: Mapping[bytes, int]) -> None:
    """Writes the file of a tokenizer that has these ranks."""
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (path / "qwen.tiktoken").write_text("".join(lines))
