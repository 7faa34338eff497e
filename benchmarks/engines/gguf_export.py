"""A Llama in Hugging Face format as an F32 GGUF file, for llama.cpp.

As llama.cpp's own converter (convert_hf_to_gguf.py) writes it, but without a vocabulary: token ids
go in and come out. Needs the `gguf` package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from engine.weights.safetensors_source import SafetensorsSource
from protocol.errors import UserError
from protocol.model.directory import read_config

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class NoGGUF(UserError):
    """This model cannot be written for llama.cpp."""


def write_gguf(model: Path, target: Path) -> None:
    """Writes the model in the directory `model` to the file `target`; raises NoGGUF."""
    config = read_config(model)
    _require_plain_llama(config, model)
    num_heads = config["num_attention_heads"]
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name(model.name)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(num_kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(_rope_theta(config))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    source = SafetensorsSource(model)
    for name in source.tensors:
        weight = source.read(name).float().numpy()
        if name.endswith("q_proj.weight"):
            weight = interleave_halves(weight, num_heads)
        elif name.endswith("k_proj.weight"):
            weight = interleave_halves(weight, num_kv_heads)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of a Hugging Face checkpoint."""
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outer:
        return outer[name]
    _, _, layer, *parts, kind = name.split(".")
    return f"blk.{layer}.{_NAMES['.'.join(parts)]}.{kind}"


def interleave_halves(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of queries or keys [heads * head_dim, hidden] in the order of llama.cpp's rope.

    Hugging Face's rope turns dimension i of a head together with i + head_dim / 2, llama.cpp's
    (for Llama) 2i together with 2i + 1.
    """
    halves = weight.reshape(num_heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _require_plain_llama(config: dict[str, Any], model: Path) -> None:
    architecture = (config.get("architectures") or ["unknown"])[0]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    biases = [key for key in ("attention_bias", "mlp_bias") if config.get(key)]
    if architecture != "LlamaForCausalLM" or kind != "default" or biases:
        found = " and ".join([architecture, f"{kind} rope scaling", *biases])
        raise NoGGUF(
            f"{model} is a {found}; only a Llama without scaling and biases is written for "
            "llama.cpp: measure it without (--peers transformers)"
        )


def _rope_theta(config: dict[str, Any]) -> float:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
