"""`ModelConfig` holds what a model directory in Hugging Face format says about its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.kernels.activation import Activation
from engine.model.families import FAMILIES, SUPPORTED, Bias, Family, UnsupportedModel
from engine.model.foreign_keys import refuse_foreign_keys
from engine.model.quantisation import read_quantisation
from engine.model.rope_config import FULL, MOST_POSITIONS, SLIDING, RopeConfig, read_ropes
from protocol.model.directory import ModelDirectoryError
from protocol.model.files import open_model
from protocol.model.numbers import MOST_TOKENS, longest_sequence, number, switch, whole, wrong

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
NORMS_FROM_ZERO = "norm_weights_count_from_zero"
"""The key of a model whose weights of norms have the 1 in them that Gemma adds, as in GGUF."""
MOST_HEADS = 1 << 14
MOST_LAYERS = 1 << 12


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
    context_length: int
    """The longest sequence that it can serve: `max_position_embeddings`, unless rope scaling
    stretches that."""
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
    has_precise_norms: bool
    """True if the weights of norms stay float32, whatever else is computed in."""
    has_output_norms: bool
    """True if the outputs of attention and feed-forward are normed before they are added."""
    has_fused_qkv: bool
    has_fused_gate_up: bool
    experts: ExpertsConfig | None
    checkpoint_dtype: str

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return len(self.layers)

    @classmethod
    def from_directory(cls, path: Path, context_length: int = 0) -> ModelConfig:
        """Reads config.json. Raises ModelDirectoryError or UnsupportedModel."""
        return cls.from_config(open_model(path).config(), path, context_length)

    @classmethod
    def from_config(
        cls, raw: Mapping[str, Any], path: Path, context_length: int = 0
    ) -> ModelConfig:
        """Makes it of the keys of the config.json in `path`. Raises ModelDirectoryError or
        UnsupportedModel.

        `context_length` is the longest sequence that is served; 0 stands for the model's own limit.
        It matters to longrope, which has other rotations if sequences may exceed the trained range:
        one choice must serve all prompts, since they share KV.
        """
        raw = dict(raw)
        architecture = _architecture(raw)
        if architecture not in FAMILIES:
            found = (
                f" is a {architecture}" if architecture else "/config.json names no architecture"
            )
            raise UnsupportedModel(f"{path}{found}; this engine supports {', '.join(SUPPORTED)}")
        read_quantisation(raw)  # it refuses what cannot be read
        if raw.get("use_bidirectional_attention"):
            raise UnsupportedModel(
                f"{path} attends to later tokens too; this engine generates, and supports causal "
                "attention only"
            )
        family = FAMILIES[architecture]
        raw = {**family.defaults, **raw}
        refuse_foreign_keys(family, raw)
        try:
            config = _of_family(architecture, family, raw, context_length)
        except KeyError as error:
            raise ModelDirectoryError(
                f"{path}/config.json has no {error.args[0]}; fetch the model again"
            ) from error
        if context_length > config.context_length:
            raise UnsupportedModel(
                f"--context-length is {context_length}, and the model serves at most "
                f"{config.context_length} tokens (max_position_embeddings "
                f"{config.max_position_embeddings}, with its rope scaling); {family.if_longer}"
            )
        return config


def _architecture(raw: dict[str, Any]) -> str:
    """Returns the first of `architectures`, or "" if there is none. Raises ModelDirectoryError."""
    names = raw.get("architectures") or [""]
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise wrong("architectures", names, "a list with the name of the architecture")
    return names[0]


def _of_family(
    architecture: str, family: Family, raw: dict[str, Any], context_length: int
) -> ModelConfig:
    num_heads = whole(raw, "num_attention_heads", most=MOST_HEADS)
    hidden_size = whole(raw, "hidden_size")
    num_kv_heads = num_heads
    if raw.get("num_key_value_heads") is not None:
        num_kv_heads = whole(raw, "num_key_value_heads", most=MOST_HEADS)
    if num_heads % num_kv_heads:
        raise ModelDirectoryError(
            f"config.json has num_attention_heads {num_heads} and num_key_value_heads "
            f"{num_kv_heads}; the former must be a multiple of the latter"
        )
    head_dim = _head_dim(raw, hidden_size, num_heads)
    scalar = number(raw, "query_pre_attn_scalar", head_dim) if family.is_gemma else head_dim

    def has(bias: Bias) -> bool:
        return bias == "always" or (bias == "attention_bias" and switch(raw, "attention_bias"))

    def softcap(key: str) -> float | None:
        is_there = family.is_gemma and raw.get(key) is not None
        return number(raw, key) if is_there else None

    return ModelConfig(
        architecture=architecture,
        vocab_size=whole(raw, "vocab_size", most=MOST_TOKENS),
        hidden_size=hidden_size,
        intermediate_size=whole(raw, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        layers=_layers(family, raw, head_dim, context_length),
        max_position_embeddings=whole(raw, "max_position_embeddings", most=MOST_POSITIONS),
        context_length=longest_sequence(raw),
        rms_norm_eps=number(raw, "rms_norm_eps", 1e-6),
        activation=_activation(family, raw),
        tie_word_embeddings=switch(raw, "tie_word_embeddings"),
        qkv_bias=has(family.qkv_bias),
        o_bias=has(family.o_bias),
        mlp_bias=family.has_mlp_bias and switch(raw, "mlp_bias"),
        qk_norm=family.has_qk_norm,
        attention_scale=scalar**-0.5,
        attention_softcap=softcap("attn_logit_softcapping"),
        logit_softcap=softcap("final_logit_softcapping"),
        embedding_scale=hidden_size**0.5 if family.is_gemma else 1.0,
        norm_offset=1.0 if family.is_gemma and not switch(raw, NORMS_FROM_ZERO) else 0.0,
        has_precise_norms=family.is_gemma,
        has_output_norms=family.is_gemma,
        has_fused_qkv=family.has_fused_qkv,
        has_fused_gate_up=family.has_fused_gate_up,
        experts=_experts(family, raw),
        checkpoint_dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
    )


def _head_dim(raw: dict[str, Any], hidden_size: int, num_heads: int) -> int:
    if raw.get("head_dim") is not None:
        return whole(raw, "head_dim")
    if hidden_size % num_heads:
        raise ModelDirectoryError(
            f"config.json has hidden_size {hidden_size}, num_attention_heads {num_heads} and no "
            "head_dim; without that, the former must be a multiple of the latter"
        )
    return hidden_size // num_heads


def _activation(family: Family, raw: dict[str, Any]) -> Activation:
    key = "hidden_activation" if family.is_gemma else "hidden_act"
    name = raw.get(key) or ("gelu_pytorch_tanh" if family.is_gemma else "silu")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UnsupportedModel(
            f"the model uses the activation {name}; this engine supports {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _layers(
    family: Family, raw: dict[str, Any], head_dim: int, context_length: int
) -> tuple[LayerConfig, ...]:
    ropes = read_ropes(family, raw, head_dim, context_length)
    types = _layer_types(family, raw)
    window = whole(raw, "sliding_window", most=MOST_POSITIONS) if SLIDING in types else None
    return tuple(
        LayerConfig(
            window=window if kind == SLIDING else None,
            rope=ropes[kind],
            has_experts=_has_experts(family, raw, i),
        )
        for i, kind in enumerate(types)
    )


def _layer_types(family: Family, raw: dict[str, Any]) -> list[str]:
    """Returns `SLIDING` or `FULL` for every layer."""
    num_layers = whole(raw, "num_hidden_layers", most=MOST_LAYERS)
    has_window = raw.get("sliding_window") is not None
    if family.windows == "late" or family.experts == "qwen":
        has_window = has_window and switch(raw, "use_sliding_window")
    types = raw.get("layer_types") if family.windows != "all" else None
    if types is not None:
        return _given_types(types, num_layers, has_window)
    if not has_window:
        return [FULL] * num_layers
    if family.windows == "all":
        return [SLIDING] * num_layers
    if family.windows == "late":
        first = whole(raw, "max_window_layers", least=0)
        return [SLIDING if i >= first else FULL for i in range(num_layers)]
    pattern = whole(raw, "sliding_window_pattern")
    return [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(num_layers)]


def _given_types(types: Any, num_layers: int, has_window: bool) -> list[str]:
    """Checks `layer_types`."""
    if not isinstance(types, list) or len(types) != num_layers:
        found = len(types) if isinstance(types, list) else types
        raise ModelDirectoryError(
            f"config.json has layer_types for {found} layers and num_hidden_layers {num_layers}; "
            "fetch the model again"
        )
    if strange := [one for one in types if one not in (SLIDING, FULL)]:
        raise UnsupportedModel(
            f"the model has layers of the type {strange[0]}; this engine supports "
            f"{SLIDING} and {FULL}"
        )
    if SLIDING in types and not has_window:
        raise ModelDirectoryError(
            f"config.json has layer_types with {SLIDING}, and no sliding_window that is used; "
            "set sliding_window and use_sliding_window, or make all layers full_attention"
        )
    return list(types)


def _experts(family: Family, raw: dict[str, Any]) -> ExpertsConfig | None:
    if family.experts == "none" or (num_experts := _num_experts(raw)) == 0:
        return None
    is_mixtral = family.experts == "mixtral"
    num_per_token = whole(raw, "num_experts_per_tok")
    if num_per_token > num_experts:
        raise ModelDirectoryError(
            f"config.json has num_experts_per_tok {num_per_token} and {num_experts} experts; "
            "a token cannot go to more experts than there are"
        )
    return ExpertsConfig(
        num_experts,
        num_per_token,
        whole(raw, "intermediate_size" if is_mixtral else "moe_intermediate_size"),
        is_mixtral or switch(raw, "norm_topk_prob"),
    )


def _has_experts(family: Family, raw: dict[str, Any], layer: int) -> bool:
    if family.experts != "qwen":
        return family.experts == "mixtral"
    dense = raw.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise wrong("mlp_only_layers", dense, "a list of layers")
    is_sparse = (layer + 1) % whole(raw, "decoder_sparse_step") == 0
    return _num_experts(raw) > 0 and is_sparse and layer not in dense


def _num_experts(raw: dict[str, Any]) -> int:
    """Returns the number of experts, which has two names: transformers 5 writes Mixtral's for Qwen
    too. Raises ModelDirectoryError if both are there with different values."""
    keys = [key for key in ("num_local_experts", "num_experts") if raw.get(key) is not None]
    counts = {key: whole(raw, key, least=0) for key in keys}
    if len(set(counts.values())) > 1:
        raise ModelDirectoryError(
            f"config.json has num_local_experts {counts['num_local_experts']} and num_experts "
            f"{counts['num_experts']}, which mean the same; remove the wrong one"
        )
    if not keys:
        raise KeyError("num_experts")
    return counts[keys[0]]
