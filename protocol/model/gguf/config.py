"""Turns the metadata of a GGUF file into what the model's config.json would say.

What a file leaves to the program that reads it is as in llama.cpp (src/models): which layers of a
Gemma have windows, how its scores are scaled, that the weights of Qwen's experts are normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from protocol.model.directory import ModelDirectoryError
from protocol.model.gguf.end_tokens import end_token_ids
from protocol.model.gguf.header import ArrayPlace
from protocol.model.gguf.parts import GgufParts
from protocol.model.gguf.rope import rope_keys
from protocol.model.gguf.settings import Settings, missing


class Architecture(NamedTuple):
    """An architecture of GGUF, by its name in Hugging Face format."""

    name: str
    model_type: str
    name_with_experts: str | None = None
    """The name if the file counts experts; None: it must not."""
    permutes_heads: bool = False
    """True if the rows of q and k are stored in pairs, as llama.cpp rotates them."""


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "llama", "MixtralForCausalLM", permutes_heads=True),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2"),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3"),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", "qwen3_moe", "Qwen3MoeForCausalLM"),
    "gemma2": Architecture("Gemma2ForCausalLM", "gemma2"),
    "gemma3": Architecture("Gemma3ForCausalLM", "gemma3_text"),
    "phi3": Architecture("Phi3ForCausalLM", "phi3"),
}
GEMMAS_BY_HIDDEN_SIZE = {("gemma2", 46), ("gemma3", 62)}
"""The Gemmas, by their numbers of layers, that scale scores by hidden size over heads rather than
by the size of a head: those of 27 billion weights."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.causal": (True,),
    "attention.temperature_scale": (0.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_gating_func": (1,),
    "expert_weights_scale": (0.0, 1.0),
    "expert_weights_norm": (True,),
    "leading_dense_block_count": (0,),
    "use_parallel_residual": (False,),
    "swin_norm": (False,),
}
"""Keys of which this engine computes these values alone."""
SOFTCAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
"""What a Gemma 2 has if its file does not say."""
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def architecture_of(parts: GgufParts) -> Architecture:
    """Returns the architecture of a model. Raises ModelDirectoryError for a file that is no model,
    or one of an architecture that is not supported."""
    kind = parts.metadata.get("general.type", "model")
    if kind != "model":
        raise ModelDirectoryError(
            f"{parts.file} is of the type {kind:.40}, a part of a model; name the file of "
            "the model in --model-path"
        )
    name = parts.metadata.get("general.architecture")
    if name is None:
        raise missing(parts, "general.architecture")
    if name not in ARCHITECTURES:
        raise ModelDirectoryError(
            f"{parts.file} is of the architecture {name:.40}; of GGUF this engine supports "
            f"{', '.join(ARCHITECTURES)}"
        )
    found = ARCHITECTURES[name]
    if not parts.metadata.get(f"{name}.expert_count"):
        return found
    if found.name_with_experts is None:
        raise ModelDirectoryError(
            f"{parts.file} is a {name} with experts, which this engine does not have; use a model "
            "without"
        )
    is_mixtral = found.name_with_experts == "MixtralForCausalLM"
    model_type = "mixtral" if is_mixtral else found.model_type
    return found._replace(name=found.name_with_experts, model_type=model_type)


def config_of(parts: GgufParts) -> dict[str, Any]:
    """Returns the settings of a model under the keys of config.json. Raises ModelDirectoryError."""
    architecture = architecture_of(parts)
    settings = Settings(parts)
    _refuse_foreign(parts, settings)
    num_heads = settings.whole("attention.head_count")
    hidden_size = settings.whole("embedding_length")
    head_dim = settings.whole("attention.key_length", hidden_size // max(num_heads, 1))
    if settings.whole("attention.value_length", head_dim) != head_dim:
        raise ModelDirectoryError(
            f"{parts.file} has keys of {head_dim} dimensions and values of "
            f"{settings.get('attention.value_length')}; this engine computes them of one size"
        )
    embedding = parts.tensors.get("token_embd.weight")
    num_tokens = parts.metadata.get("tokenizer.ggml.tokens", ArrayPlace(0, 0, 0)).length
    config = {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        "vocab_size": embedding.shape[0] if embedding else num_tokens,
        "hidden_size": hidden_size,
        "num_hidden_layers": settings.whole("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": settings.whole("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": settings.whole("context_length"),
        "rms_norm_eps": settings.present("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in parts.tensors,
        "torch_dtype": _dtype(parts),
        "eos_token_id": end_token_ids(parts),
        "bos_token_id": parts.metadata.get("tokenizer.ggml.bos_token_id"),
        **_feed_forward_keys(settings, architecture),
        **_bias_keys(parts),
        **rope_keys(parts, settings, head_dim),
    }
    return config | _window_keys(settings, config)


def _refuse_foreign(parts: GgufParts, settings: Settings) -> None:
    for key, harmless in NEUTRAL.items():
        value = settings.get(key)
        if value is not None and value not in harmless:
            raise ModelDirectoryError(
                f"{parts.file} has {settings.prefix}.{key} {value!r}, with which this engine "
                f"cannot compute a {settings.prefix}; use another model"
            )


def _feed_forward_keys(settings: Settings, architecture: Architecture) -> dict[str, Any]:
    size = settings.whole("feed_forward_length")
    count = settings.whole("expert_count", 0)
    if not count:
        return {"intermediate_size": size}
    used = settings.whole("expert_used_count")
    keys = {"intermediate_size": size, "num_local_experts": count, "num_experts_per_tok": used}
    if architecture.model_type == "mixtral":
        return keys
    return keys | {
        "moe_intermediate_size": settings.whole("expert_feed_forward_length", size // max(used, 1)),
        "norm_topk_prob": True,
    }


def _bias_keys(parts: GgufParts) -> dict[str, Any]:
    return {
        "attention_bias": "blk.0.attn_output.bias" in parts.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in parts.tensors,
    }


def _window_keys(settings: Settings, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what windows and scores of Gemma and Phi are computed with. Llama, of which Mistral
    is one here, has no windows in this format."""
    prefix = settings.prefix
    if prefix not in ("gemma2", "gemma3", "phi3"):
        return {}
    window = settings.get("attention.sliding_window", 4096 if prefix == "gemma2" else None)
    keys: dict[str, Any] = {"sliding_window": window or None}
    if prefix == "phi3":
        return keys
    scalar = config["head_dim"]
    if (prefix, config["num_hidden_layers"]) in GEMMAS_BY_HIDDEN_SIZE:
        scalar = config["hidden_size"] // config["num_attention_heads"]
    keys |= {"query_pre_attn_scalar": scalar, "norm_weights_count_from_zero": True}
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        keys[key] = settings.get(key) or (SOFTCAPS[key] if prefix == "gemma2" else None)
    return keys


def _dtype(parts: GgufParts) -> str:
    """Returns the dtype of most weights. Blocks, whose values lie anywhere within the range of
    float32, are computed in bfloat16 where that is asked for."""
    sizes: dict[str, int] = {}
    for place in parts.tensors.values():
        if len(place.shape) > 1:
            name = DTYPES.get(place.type.name, "bfloat16")
            sizes[name] = sizes.get(name, 0) + place.num_bytes
    return max(sizes, key=lambda name: sizes[name], default="float32")
