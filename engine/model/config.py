"""`ModelConfig` holds what a model directory in Hugging Face format says about its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.kernels.base import Activation
from engine.model.families import FAMILIES, SUPPORTED, Bias, Family, UnsupportedModel
from engine.model.rope_config import FULL, SLIDING, RopeConfig, read_ropes
from protocol.model_directory import ModelDirectoryError, read_config

ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class LayerConfig:
    """The settings that can differ from layer to layer."""

    window: int | None
    """The number of last tokens that a token attends to, itself included; None: it attends to
    all."""
    rope: RopeConfig
    has_experts: bool


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts in place of the feed-forward of some layers."""

    num_experts: int
    num_per_token: int
    intermediate_size: int
    """The number of inner dimensions of one expert."""
    is_normalised: bool
    """True if the weights of a token's experts are scaled to a sum of 1."""


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and switches of a whole decoder. It does not know which part of it a rank has."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    max_position_embeddings: int
    rms_norm_eps: float
    activation: Activation
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    attention_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    embedding_scale: float
    norm_offset: float
    """A number that is added to the weights of norms when they are loaded."""
    has_output_norms: bool
    """True if the outputs of attention and feed-forward are normed before they are added."""
    has_fused_projections: bool
    experts: ExpertsConfig | None
    checkpoint_dtype: str

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return len(self.layers)

    @classmethod
    def from_directory(cls, path: Path, context_length: int = 0) -> ModelConfig:
        """Reads config.json. Raises ModelDirectoryError or UnsupportedModel.

        `context_length` is the longest sequence that is served; 0 stands for the model's own limit.
        It matters to longrope, which has other rotations if sequences may exceed the trained range:
        one choice must serve all prompts, since they share KV.
        """
        raw = read_config(path)
        architecture = (raw.get("architectures") or ["unknown"])[0]
        if architecture not in FAMILIES:
            raise UnsupportedModel(
                f"{path} is a {architecture}; this engine supports {', '.join(SUPPORTED)}"
            )
        if raw.get("quantization_config"):
            raise UnsupportedModel(
                f"{path} is quantised, which this engine cannot load yet; use the model's "
                "bfloat16, float16 or float32 weights"
            )
        if raw.get("use_bidirectional_attention"):
            raise UnsupportedModel(
                f"{path} attends to later tokens too; this engine generates, and supports causal "
                "attention only"
            )
        family = FAMILIES[architecture]
        try:
            return _of_family(architecture, family, {**family.defaults, **raw}, context_length)
        except KeyError as error:
            raise ModelDirectoryError(
                f"{path}/config.json has no {error.args[0]}; fetch the model again"
            ) from error


def _of_family(
    architecture: str, family: Family, raw: dict[str, Any], context_length: int
) -> ModelConfig:
    num_heads = raw["num_attention_heads"]
    head_dim = raw.get("head_dim") or raw["hidden_size"] // num_heads
    scalar = raw.get("query_pre_attn_scalar") if family.is_gemma else None

    def has(bias: Bias) -> bool:
        return bias == "always" or (bias == "attention_bias" and bool(raw.get("attention_bias")))

    return ModelConfig(
        architecture=architecture,
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        layers=_layers(family, raw, head_dim, context_length),
        max_position_embeddings=raw["max_position_embeddings"],
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        activation=_activation(raw),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=has(family.qkv_bias),
        o_bias=has(family.o_bias),
        mlp_bias=family.has_mlp_bias and bool(raw.get("mlp_bias")),
        qk_norm=family.has_qk_norm,
        attention_scale=float(scalar or head_dim) ** -0.5,
        attention_softcap=raw.get("attn_logit_softcapping") if family.is_gemma else None,
        logit_softcap=raw.get("final_logit_softcapping") if family.is_gemma else None,
        embedding_scale=raw["hidden_size"] ** 0.5 if family.is_gemma else 1.0,
        norm_offset=1.0 if family.is_gemma else 0.0,
        has_output_norms=family.is_gemma,
        has_fused_projections=family.has_fused_projections,
        experts=_experts(family, raw),
        checkpoint_dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
    )


def _activation(raw: dict[str, Any]) -> Activation:
    name = raw.get("hidden_activation") or raw.get("hidden_act") or "silu"
    if name not in ACTIVATIONS:
        raise UnsupportedModel(
            f"the model uses the activation {name}; this engine supports {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _layers(
    family: Family, raw: dict[str, Any], head_dim: int, context_length: int
) -> tuple[LayerConfig, ...]:
    ropes = read_ropes(raw, head_dim, 10_000.0, context_length)
    window = raw.get("sliding_window")
    return tuple(
        LayerConfig(
            window=window if kind == SLIDING else None,
            rope=ropes[kind],
            has_experts=_has_experts(family, raw, i),
        )
        for i, kind in enumerate(_layer_types(family, raw))
    )


def _layer_types(family: Family, raw: dict[str, Any]) -> list[str]:
    """Returns `SLIDING` or `FULL` for every layer."""
    num_layers = raw["num_hidden_layers"]
    is_optional = family.windows == "late" or family.experts == "qwen"
    if not raw.get("sliding_window") or (is_optional and not raw.get("use_sliding_window")):
        return [FULL] * num_layers
    if family.windows == "all":
        return [SLIDING] * num_layers
    if types := raw.get("layer_types"):
        if strange := set(types) - {SLIDING, FULL}:
            raise UnsupportedModel(
                f"the model has layers of the type {strange.pop()}; this engine supports "
                f"{SLIDING} and {FULL}"
            )
        return list(types)
    if family.windows == "late":
        first = raw["max_window_layers"]
        return [SLIDING if i >= first else FULL for i in range(num_layers)]
    pattern = raw["sliding_window_pattern"]
    return [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(num_layers)]


def _experts(family: Family, raw: dict[str, Any]) -> ExpertsConfig | None:
    if family.experts == "mixtral":
        return ExpertsConfig(
            raw["num_local_experts"], raw["num_experts_per_tok"], raw["intermediate_size"], True
        )
    num_experts = _num_qwen_experts(raw)
    if family.experts == "qwen" and num_experts:
        return ExpertsConfig(
            num_experts,
            raw["num_experts_per_tok"],
            raw["moe_intermediate_size"],
            bool(raw["norm_topk_prob"]),
        )
    return None


def _has_experts(family: Family, raw: dict[str, Any], layer: int) -> bool:
    if family.experts != "qwen":
        return family.experts == "mixtral"
    is_sparse = (layer + 1) % raw["decoder_sparse_step"] == 0
    is_dense = layer in (raw.get("mlp_only_layers") or ())
    return _num_qwen_experts(raw) > 0 and is_sparse and not is_dense


def _num_qwen_experts(raw: dict[str, Any]) -> int:
    """Returns the number of experts, which transformers 5 writes under Mixtral's name."""
    return int(raw.get("num_local_experts") or raw.get("num_experts") or 0)
