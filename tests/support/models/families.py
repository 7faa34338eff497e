"""Small random models of every supported family, saved as Hugging Face would save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tests.support.checkpoints.first_qwen import write_as_first_qwen

SHAPE: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,  # wide, so that no two logits are close enough for a tie
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
WINDOW = 24
ORIGINAL_RANGE = 64
"""Of the stretched ropes: shorter than most prompts of the tests."""
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_RANGE,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": ORIGINAL_RANGE,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.5, 2.0, 4.0, 8.0, 16.0, 32.0],
    "partial_rotary_factor": 0.75,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GEMMA_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 8.0},
}

FAMILIES: dict[str, PretrainedConfig] = {
    "llama2": LlamaConfig(**SHAPE | {"num_key_value_heads": 4}),
    "llama3": LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True),
    "llama-linear": LlamaConfig(**SHAPE, rope_parameters=LINEAR_ROPE),
    "llama-bias": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, head_dim=32),
    "mistral": MistralConfig(**SHAPE, sliding_window=WINDOW),
    "first-qwen": Qwen2Config(**SHAPE | {"num_key_value_heads": 4}, rms_norm_eps=1e-5),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2-window": Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen2-yarn": Qwen2Config(**SHAPE, rope_parameters=YARN_ROPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=32),
    "qwen3-yarn": Qwen3Config(
        **SHAPE,
        rope_parameters={
            **YARN_ROPE,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "truncate": False,
            "mscale": 2.0,
            "mscale_all_dim": 0.5,
        },
    ),
    "gemma2": Gemma2Config(**SHAPE, head_dim=32, sliding_window=WINDOW, query_pre_attn_scalar=24),
    "gemma3": Gemma3TextConfig(
        **SHAPE,
        head_dim=32,
        sliding_window=WINDOW,
        sliding_window_pattern=3,
        query_pre_attn_scalar=24,
        rope_parameters=GEMMA_ROPES,
    ),
    "phi3": Phi3Config(
        **SHAPE | {"num_key_value_heads": 4},
        sliding_window=WINDOW,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
        },
    ),
    "phi4-mini": Phi3Config(
        **SHAPE,
        original_max_position_embeddings=ORIGINAL_RANGE,
        rope_parameters=LONGROPE,
        tie_word_embeddings=True,
    ),
    "phi4-mini-short": Phi3Config(
        **SHAPE,
        original_max_position_embeddings=ORIGINAL_RANGE,
        rope_parameters=LONGROPE,
        tie_word_embeddings=True,
    ),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=5, num_experts_per_tok=2),
    "qwen3-moe": Qwen3MoeConfig(
        **SHAPE,
        **EXPERTS,
        head_dim=32,
        norm_topk_prob=True,
        decoder_sparse_step=2,
    ),
    "qwen3-moe-raw": Qwen3MoeConfig(
        **SHAPE, **EXPERTS, head_dim=32, norm_topk_prob=False, mlp_only_layers=[1]
    ),
}
SERVED_LENGTHS = {"phi4-mini-short": ORIGINAL_RANGE}
"""Where it is not the model's limit. transformers chooses between the two tables of longrope anew
for every prompt, the engine once, by the longest sequence that it serves."""


def prompt_lengths(family: str, lengths: list[int], num_answer_tokens: int) -> list[int]:
    """Those of `lengths` for which transformers uses the same rotations as the engine."""
    if family == "phi4-mini-short":
        return [n for n in lengths if n + num_answer_tokens <= ORIGINAL_RANGE]
    if family == "phi4-mini":
        return [n for n in lengths if n > ORIGINAL_RANGE]
    return lengths


def save_random_model(family: str, path: Path) -> PreTrainedModel:
    """Writes the model to `path` in shards; returns it, float32, eager attention."""
    model = random_model(FAMILIES[family])
    model.save_pretrained(path, max_shard_size="150KB")
    if family == "first-qwen":
        write_as_first_qwen(path)
    return model


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model with random weights, float32, eager attention."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    mean = 0.0 if config.model_type.startswith("gemma") else 1.0
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=mean if "norm" in name else 0.0, std=0.1)
        if "embed_tokens" in name and not mean:
            # As long as in training: what Gemma multiplies by sqrt(hidden size) has that inverse.
            torch.nn.init.normal_(parameter, std=config.hidden_size**-0.5)
    model.eval()
    return model


def save_model_that_sees(path: Path) -> PreTrainedModel:
    """Gemma 3 with its eyes, of which the engine serves the text part."""
    torch.manual_seed(7)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    text = FAMILIES["gemma3"].to_dict()
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=198
    )
    model = Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager")
    model.eval().save_pretrained(path)
    return model
