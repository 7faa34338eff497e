"""`ModelConfig`: what a model directory in Hugging Face format says about its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import UserError
from protocol.model_directory import ModelDirectoryError, read_config

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


class UnsupportedModel(UserError):
    """The model is fine, but this engine has no definition of it."""


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained range.

    `kind` is default, linear (uses the factor only) or llama3 (uses all, Llama 3.1's config).
    """

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and switches of a decoder of the Llama family."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: int | None
    """A token attends to this many last tokens, itself included; None: to all."""
    checkpoint_dtype: str

    @classmethod
    def from_directory(cls, path: Path) -> ModelConfig:
        """Reads config.json; raises ModelDirectoryError or UnsupportedModel."""
        raw = read_config(path)
        architecture = (raw.get("architectures") or ["unknown"])[0]
        if architecture not in SUPPORTED:
            raise UnsupportedModel(
                f"{path} is a {architecture}; this engine supports {', '.join(SUPPORTED)}"
            )
        if raw.get("quantization_config"):
            raise UnsupportedModel(
                f"{path} is quantised, which this engine cannot load yet; use the model's "
                "bfloat16, float16 or float32 weights"
            )
        if raw.get("hidden_act", "silu") != "silu":
            raise UnsupportedModel(
                f"{path} uses the activation {raw['hidden_act']}; this engine supports silu"
            )
        try:
            return cls._from_raw(architecture, raw, path)
        except KeyError as error:
            raise ModelDirectoryError(
                f"{path}/config.json has no {error.args[0]}; fetch the model again"
            ) from error

    @classmethod
    def _from_raw(cls, architecture: str, raw: dict[str, Any], path: Path) -> ModelConfig:
        num_heads = raw["num_attention_heads"]
        is_qwen2 = architecture == "Qwen2ForCausalLM"
        attention_bias = bool(raw.get("attention_bias", False))
        return cls(
            architecture=architecture,
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=raw.get("num_key_value_heads") or num_heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // num_heads,
            max_position_embeddings=raw["max_position_embeddings"],
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=float(_rope(raw).get("rope_theta") or raw.get("rope_theta") or 10_000.0),
            rope_scaling=_rope_scaling(raw, path),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=attention_bias or is_qwen2,
            o_bias=attention_bias and architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM"),
            mlp_bias=bool(raw.get("mlp_bias", False)) and architecture == "LlamaForCausalLM",
            qk_norm=architecture == "Qwen3ForCausalLM",
            sliding_window=_sliding_window(architecture, raw, path),
            checkpoint_dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        )


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes `rope_parameters`, earlier versions `rope_scaling`."""
    return dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})


def _rope_scaling(raw: dict[str, Any], path: Path) -> RopeScaling:
    rope = _rope(raw)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise UnsupportedModel(
            f"{path} uses {kind} rope scaling; this engine supports default, linear and llama3"
        )
    defaults = RopeScaling()
    return RopeScaling(
        kind=kind,
        factor=float(rope.get("factor", 1.0)),
        low_freq_factor=float(rope.get("low_freq_factor", defaults.low_freq_factor)),
        high_freq_factor=float(rope.get("high_freq_factor", defaults.high_freq_factor)),
        original_max_position=int(
            rope.get("original_max_position_embeddings", defaults.original_max_position)
        ),
    )


def _sliding_window(architecture: str, raw: dict[str, Any], path: Path) -> int | None:
    window = raw.get("sliding_window")
    if architecture == "MistralForCausalLM":
        return window
    if window and raw.get("use_sliding_window"):
        raise UnsupportedModel(
            f"{path} uses a sliding window in some layers only, which this engine cannot do yet; "
            "set use_sliding_window to false in its config.json if prompts stay within "
            f"{window} tokens"
        )
    return None
