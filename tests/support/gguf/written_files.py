"""Writes models as GGUF files, as llama.cpp's converter would (conversion/*.py): with its names,
its order of rows and its metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from protocol.model.gguf.header import ArrayPlace, Header, read_header
from protocol.model.gguf.tensor_types import BLOCK_TYPES
from tests.support.gguf.random_blocks import random_blocks

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
}
TypeOf = Callable[[str], str]
"""Tells the type of a tensor that is a matrix, by its name in the file."""


def write_gguf(
    model: PreTrainedModel, file: Path, type_of: TypeOf, vocabulary: Path | None = None
) -> None:
    """Writes `model`, with the vocabulary of another file if one is named. Weights that `type_of`
    wants in blocks or in half precision become other ones, random or rounded, in `model` too."""
    arch = ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    _write_metadata(writer, model.config)
    if vocabulary is not None:
        copy_vocabulary(read_header(vocabulary), writer)
    for name, weight in _named_weights(model, arch):
        if weight.dim() == 1 or name.endswith("ffn_gate_inp.weight"):
            offset = 1.0 if "gemma" in model.config.model_type and "norm" in name else 0.0
            writer.add_tensor(name, (_in_file_order(name, weight, model) + offset).numpy())
            continue
        _write_matrix(writer, name, weight, type_of(name), model)
    for name, values in _rope_tensors(model.config):
        writer.add_tensor(name, np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_vocabulary(header: Header, writer: gguf.GGUFWriter) -> None:
    """Writes what a file says of its tokenizer."""
    for key, value in header.metadata.items():
        if not key.startswith("tokenizer."):
            continue
        if isinstance(value, ArrayPlace):
            writer.add_array(key, header.array(key) or [])
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.kv_data[0].pop(key, None)  # the model's config may have said so already
            writer.add_uint32(key, value)


def _write_matrix(
    writer: gguf.GGUFWriter, name: str, weight: Tensor, kind: str, model: PreTrainedModel
) -> None:
    """Writes a weight, which it changes to what the file holds."""
    form = gguf.GGMLQuantizationType[kind]
    if kind in BLOCK_TYPES:
        stored = random_blocks(kind, *weight.shape, seed=len(name))  # type: ignore[arg-type]
    else:
        stored = gguf.quantize(_in_file_order(name, weight, model).numpy(), form)
    values = torch.from_numpy(gguf.dequantize(stored, form).reshape(weight.shape).copy())
    # Where each row of the file is in the model: the converter's reordering, of row numbers.
    numbers = torch.arange(weight.shape[0], dtype=torch.float32)[:, None]
    weight[_in_file_order(name, numbers, model).flatten().long()] = values
    writer.add_tensor(name, stored, raw_dtype=form)


def _named_weights(model: PreTrainedModel, arch: gguf.MODEL_ARCH) -> Iterator[tuple[str, Tensor]]:
    """Yields views of the model's weights by their names in a file. Experts are stacked, and gate
    and up of theirs are two tensors."""
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    inner = getattr(model.config, "moe_intermediate_size", model.config.intermediate_size)
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        block = name.partition(".mlp.")[0].replace("model.layers", "blk")
        if name.endswith("experts.gate_up_proj"):
            yield f"{block}.ffn_gate_exps.weight", weight[:, :inner]
            yield f"{block}.ffn_up_exps.weight", weight[:, inner:]
        elif name.endswith("experts.down_proj"):
            yield f"{block}.ffn_down_exps.weight", weight
        else:
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert found is not None, name
            yield found, weight


def _in_file_order(name: str, weight: Tensor, model: PreTrainedModel) -> Tensor:
    """Reorders rows as LlamaModel.permute of the converter does."""
    stem = name.split(".")[-2]
    is_llama = ARCHITECTURES[model.config.model_type] == gguf.MODEL_ARCH.LLAMA
    if not is_llama or stem not in ("attn_q", "attn_k"):
        return weight
    config = model.config
    heads = config.num_attention_heads if stem == "attn_q" else config.num_key_value_heads
    shape = (heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)


def _write_metadata(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    head_dim = getattr(config, "head_dim", None)
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * full.get("partial_rotary_factor", 1.0)))
    writer.add_eos_token_id(config.eos_token_id)
    if "gemma2" in config.model_type:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type in ("gemma2", "gemma3_text", "phi3"):
        writer.add_sliding_window(config.sliding_window or 0)
    if config.model_type in ("mixtral", "qwen3_moe"):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if config.model_type == "qwen3_moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    _write_rope(writer, config, full)


def _write_rope(writer: gguf.GGUFWriter, config: PretrainedConfig, rope: dict[str, Any]) -> None:
    if "sliding_attention" in config.rope_parameters:
        theta = config.rope_parameters["sliding_attention"]["rope_theta"]
        writer.add_float32(f"{writer.arch}.rope.freq_base_swa", theta)
    if config.model_type == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _rope_tensors(config: PretrainedConfig) -> Iterator[tuple[str, list[float]]]:
    """Yields the divisors of frequencies. Those of Llama 3.1 are what its formula makes of 1, as
    in the converter's generate_extra_tensors."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", rope["long_factor"]
        yield "rope_factors_short.weight", rope["short_factor"]
    if rope.get("rope_type") != "llama3":
        return
    dim = config.hidden_size // config.num_attention_heads
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    divisors = []
    for i in range(0, dim, 2):
        turns = original / (2 * np.pi * rope["rope_theta"] ** (i / dim))
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1.0 / ((1.0 - blend) / factor + blend))
    yield "rope_freqs.weight", divisors
