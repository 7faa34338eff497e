"""The supported architectures, and how each differs from Llama beyond the numbers in
config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from protocol.errors import UserError

Bias = Literal["never", "always", "attention_bias"]
Windows = Literal["all", "late", "patterned"]


class UnsupportedModel(UserError):
    """The model is fine, but this engine has no definition of it."""


@dataclass(frozen=True)
class Family:
    """The differences of one architecture from Llama. `defaults` are the values that transformers
    takes for settings that a config.json leaves out."""

    qkv_bias: Bias = "never"
    o_bias: Bias = "never"
    has_mlp_bias: bool = False
    """True if the feed-forward has biases where config.json sets `mlp_bias`."""
    has_qk_norm: bool = False
    windows: Windows = "all"
    """The layers that have the `sliding_window` where config.json has no `layer_types`. "late" are
    those from `max_window_layers` on, "patterned" all but every `sliding_window_pattern`-th."""
    is_gemma: bool = False
    """True if norm weights count from 1, outputs of attention and feed-forward are normed too, and
    the embedding is scaled by sqrt(hidden size)."""
    has_local_rope: bool = False
    """True if sliding layers have a rope of their own."""
    may_rotate_partly: bool = False
    """True if only some dimensions of a head may be rotated."""
    has_fused_qkv: bool = False
    """True if the checkpoint has qkv_proj in place of its parts."""
    has_fused_gate_up: bool = False
    """True if the checkpoint has gate_up_proj in place of its parts."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Llama's names of the modules that the checkpoint calls otherwise, by those names; `*` stands
    for the number of a layer."""
    foreign: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys of config.json that only this architecture has and this engine does not compute, and
    the values that change nothing; null is one."""
    if_longer: str = "choose a shorter one, or set rope_scaling in its config.json"
    """What to do about a --context-length that the model does not serve."""
    experts: Literal["none", "mixtral", "qwen"] = "none"
    ignored_weights: tuple[str, ...] = ()
    """Prefixes of tensors that are not loaded: they belong to parts that see, and this engine
    serves text."""
    defaults: Mapping[str, Any] = field(default_factory=dict)


GEMMA = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
GEMMA3 = Family(
    "attention_bias",
    "attention_bias",
    has_qk_norm=True,
    windows="patterned",
    is_gemma=True,
    has_local_rope=True,
    defaults={
        **GEMMA,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
)
FIRST_QWEN = Family(
    "always",
    has_fused_qkv=True,
    names={
        "transformer.wte": "model.embed_tokens",
        "transformer.h.*.ln_1": "model.layers.*.input_layernorm",
        "transformer.h.*.attn.c_attn": "model.layers.*.self_attn.qkv_proj",
        "transformer.h.*.attn.c_proj": "model.layers.*.self_attn.o_proj",
        "transformer.h.*.ln_2": "model.layers.*.post_attention_layernorm",
        "transformer.h.*.mlp.w1": "model.layers.*.mlp.up_proj",
        "transformer.h.*.mlp.w2": "model.layers.*.mlp.gate_proj",
        "transformer.h.*.mlp.c_proj": "model.layers.*.mlp.down_proj",
        "transformer.ln_f": "model.norm",
    },
    foreign={
        "no_bias": (True,),
        "rotary_pct": (1,),
        "scale_attn_weights": (True,),
        "use_cache_quantization": (False,),
        "apply_residual_connection_post_layernorm": (False,),
        "rope_scaling": (),
        "rope_parameters": (),
        "visual": (),
        "audio": (),
    },
    if_longer="choose a shorter one: beyond its seq_length a first-generation Qwen changes "
    "rotations and scores with the length of the prompt, so no page could be shared",
)
FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("attention_bias", "attention_bias", has_mlp_bias=True),
    "MistralForCausalLM": Family(defaults={"sliding_window": 4096}),
    "QWenLMHeadModel": FIRST_QWEN,
    "Qwen2ForCausalLM": Family("always", windows="late", defaults={"max_window_layers": 28}),
    "Qwen3ForCausalLM": Family(
        "attention_bias",
        "attention_bias",
        has_qk_norm=True,
        windows="late",
        defaults={"max_window_layers": 28, "head_dim": 128},
    ),
    "Gemma2ForCausalLM": Family(
        "attention_bias",
        "attention_bias",
        windows="patterned",
        is_gemma=True,
        defaults={
            **GEMMA,
            "sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "Gemma3ForCausalLM": GEMMA3,
    "Gemma3ForConditionalGeneration": dataclasses.replace(
        GEMMA3,
        ignored_weights=("vision_tower.", "multi_modal_projector."),
        defaults={
            **GEMMA3.defaults,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
        },
    ),
    "Phi3ForCausalLM": Family(
        has_fused_qkv=True,
        has_fused_gate_up=True,
        may_rotate_partly=True,
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    ),
    "MixtralForCausalLM": Family(
        experts="mixtral",
        defaults={
            "num_experts_per_tok": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
        },
    ),
    "Qwen3MoeForCausalLM": Family(
        "attention_bias",
        "attention_bias",
        has_qk_norm=True,
        experts="qwen",
        defaults={
            "decoder_sparse_step": 1,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
        },
    ),
}
SUPPORTED = tuple(FAMILIES)


def names_of(config: Mapping[str, Any]) -> Mapping[str, str]:
    """Returns `Family.names` for a model with this config.json; empty for one that has Llama's, or
    that no family here is for."""
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    family = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    return family.names if family is not None else {}
