"""Refuses a config.json that asks for what its architecture does not do.

transformers ignores a key that an architecture does not read. But who writes a scale or a cap into
a config.json trained the model with it: its answers would be wrong, and nobody would be told.
"""

from __future__ import annotations

from typing import Any

from engine.model.families import Family, UnsupportedModel

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_multiplier": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "scale_emb": (1,),
    "scale_depth": (1,),
    "clip_qkv": (),
    "alibi": (False,),
    "parallel_attn": (False,),
    "use_parallel_residual": (False,),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "lm_head_bias": (False,),
    "attention_chunk_size": (),
    "no_rope_layers": ([],),
    "n_routed_experts": (0,),
    "kv_lora_rank": (0,),
}
"""Keys that no supported architecture reads, and the values that change nothing; null is one."""
OF_GEMMA = ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")
OF_EXPERTS = ("num_experts", "num_local_experts")
GEMMA2_PATTERN = 2


def refuse_foreign_keys(family: Family, raw: dict[str, Any]) -> None:
    """Raises UnsupportedModel for a key with a value that would be ignored."""
    neutral = {**NEUTRAL, **family.foreign}
    if not family.is_gemma:
        neutral |= dict.fromkeys(OF_GEMMA, ())
    if family.experts == "none":
        neutral |= dict.fromkeys(OF_EXPERTS, (0,))
    if family.is_gemma and not family.has_local_rope:
        neutral["sliding_window_pattern"] = (GEMMA2_PATTERN,)
    for key, harmless in neutral.items():
        value = raw.get(key)
        if value is not None and value not in harmless:
            raise UnsupportedModel(
                f"config.json has {key} {value!r:.80}, which this architecture does not have; is "
                "`architectures` right? If the model was trained without it, remove it"
            )
