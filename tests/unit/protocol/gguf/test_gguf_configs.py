"""The metadata of a GGUF file becomes what the model's config.json would say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.model.config import ModelConfig
from protocol.errors import UserError
from protocol.model.directory import ModelDirectoryError
from protocol.model.files import open_model
from protocol.model.numbers import longest_sequence
from tests.support.gguf.edited_files import LLAMA, write_file

EMBEDDING = {"token_embd.weight": np.zeros((199, 64), dtype=np.float32)}


def config_with(path: Path, architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    """The configuration of a file whose settings differ from `LLAMA`; those of tensors have names
    that end in weight or bias."""
    settings, tensors = dict(LLAMA), dict(EMBEDDING)
    for key, value in changes.items():
        name = key.replace("__", ".")
        if name.endswith(("weight", "bias")):
            tensors[name] = np.array(value, dtype=np.float32)
        else:
            full = name if name.startswith(("general.", "tokenizer.")) else f"llama.{name}"
            settings[full] = value
    renamed = {
        key.replace("llama.", f"{architecture}.", 1): value for key, value in settings.items()
    }
    file = write_file(path / "m.gguf", renamed, tensors, architecture)
    return open_model(file).config()


def test_a_llama(tmp_path: Path) -> None:
    config = config_with(tmp_path, rope__freq_base=5e5)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["vocab_size"], config["head_dim"], config["rope_theta"]) == (199, 16, 5e5)
    assert config["tie_word_embeddings"] and not config["attention_bias"]
    assert config["torch_dtype"] == "float32" and "rope_scaling" not in config
    model = ModelConfig.from_config(config, tmp_path)
    assert (model.num_layers, model.num_kv_heads, model.context_length) == (2, 2, 4096)


@pytest.mark.parametrize(
    ("architecture", "changes", "name"),
    [
        ("llama", {"expert_count": 4, "expert_used_count": 2}, "MixtralForCausalLM"),
        ("qwen2", {}, "Qwen2ForCausalLM"),
        ("qwen3", {}, "Qwen3ForCausalLM"),
        ("qwen3moe", {"expert_count": 4, "expert_used_count": 2}, "Qwen3MoeForCausalLM"),
        ("gemma2", {}, "Gemma2ForCausalLM"),
        ("gemma3", {"attention__sliding_window": 512}, "Gemma3ForCausalLM"),
        ("phi3", {"attention__sliding_window": 0}, "Phi3ForCausalLM"),
    ],
)
def test_every_architecture_makes_a_model(
    architecture: str, changes: dict[str, Any], name: str, tmp_path: Path
) -> None:
    config = config_with(tmp_path, architecture, **changes)
    model = ModelConfig.from_config(config, tmp_path)
    assert model.architecture == name
    if model.experts is not None:
        assert model.experts.is_normalised and model.experts.num_experts == 4
        assert model.experts.intermediate_size == (96 if name.startswith("Mixtral") else 48)
    is_gemma = architecture.startswith("gemma")
    assert model.norm_offset == 0 and model.has_precise_norms is is_gemma


def test_settings_of_layers_that_are_all_alike_are_one(tmp_path: Path) -> None:
    config = config_with(tmp_path, attention__head_count_kv=[4, 4], feed_forward_length=[96, 96])
    assert config["num_key_value_heads"] == 4 and config["intermediate_size"] == 96
    with pytest.raises(ModelDirectoryError, match=r"head_count_kv \[1, 4\], which differs"):
        config_with(tmp_path, attention__head_count_kv=[1, 4])


def test_llama_3_1_has_a_divisor_for_each_frequency(tmp_path: Path) -> None:
    divisors = [1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0]
    config = config_with(tmp_path, rope_freqs__weight=divisors)
    for length in (0, 64):
        rope = ModelConfig.from_config(config, tmp_path, length).layers[0].rope
        assert rope.divisors == tuple(divisors) and rope.attention_factor == 1.0
    assert longest_sequence(config) == 4096


def test_divisors_of_one_scale_nothing(tmp_path: Path) -> None:
    assert "rope_scaling" not in config_with(tmp_path, rope_freqs__weight=[1.0] * 8)


def test_phi_has_a_table_for_each_range(tmp_path: Path) -> None:
    config = config_with(
        tmp_path,
        "phi3",
        rope__dimension_count=8,
        rope__scaling__original_context_length=64,
        rope__scaling__attn_factor=1.25,
        rope_factors_long__weight=[2.0, 3.0, 4.0, 5.0],
        rope_factors_short__weight=[1.0, 1.0, 1.0, 2.0],
    )
    long = ModelConfig.from_config(config, tmp_path).layers[0].rope
    short = ModelConfig.from_config(config, tmp_path, 64).layers[0].rope
    assert (long.rotary_dim, long.divisors) == (8, (2.0, 3.0, 4.0, 5.0))
    assert short.divisors == (1.0, 1.0, 1.0, 2.0)
    assert long.attention_factor == short.attention_factor == 1.25


@pytest.mark.parametrize(
    ("changes", "scaling", "longest"),
    [
        ({"rope__scaling__factor": 2.0}, ("linear", 2.0), 8192),
        ({"rope__scale_linear": 2.0}, ("linear", 2.0), 8192),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 2.0}, ("default", 1.0), 4096),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 4096,
            },
            ("yarn", 4.0),
            16384,
        ),
    ],
)
def test_scaling_by_keys(
    changes: dict[str, Any], scaling: tuple[str, float], longest: int, tmp_path: Path
) -> None:
    config = config_with(tmp_path, **changes)
    rope = ModelConfig.from_config(config, tmp_path).layers[0].rope
    assert (rope.kind, rope.factor) == scaling and longest_sequence(config) == longest


def test_the_largest_gemmas_scale_scores_by_hidden_size(tmp_path: Path) -> None:
    small = config_with(tmp_path, "gemma2", attention__key_length=32, attention__value_length=32)
    assert small["query_pre_attn_scalar"] == 32 and small["final_logit_softcapping"] == 30
    large = config_with(
        tmp_path, "gemma2", attention__key_length=32, attention__value_length=32, block_count=46
    )
    assert large["query_pre_attn_scalar"] == 16


def test_every_token_that_ends_an_answer_is_found(tmp_path: Path) -> None:
    tokens = ["a", "<eos>", "<end_of_turn>", "<|im_end|>", "</s>", "x", "y"]
    config = config_with(
        tmp_path,
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__token_type=[1, 3, 3, 1, 3, 3, 3],
        tokenizer__ggml__eos_token_id=1,
        tokenizer__ggml__eot_token_id=5,
    )
    assert config["eos_token_id"] == [1, 2, 4, 5]  # <|im_end|> is plain text here


def test_recommended_sampling(tmp_path: Path) -> None:
    config_with(tmp_path, general__sampling__temp=0.5, general__sampling__top_k=20)
    assert open_model(tmp_path / "m.gguf").generation_config() == {"temperature": 0.5, "top_k": 20}


def test_templates_and_names(tmp_path: Path) -> None:
    config_with(
        tmp_path,
        tokenizer__chat_template="plain",
        tokenizer__chat_templates=["tool_use", "gone"],
        tokenizer__chat_template__tool_use="tools",
    )
    model = open_model(tmp_path)
    assert model.chat_templates() == {"default": "plain", "tool_use": "tools"}
    assert model.name == "m" and not model.has_tokenizer and model.modified_s > 0


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("rwkv", {}, "architecture rwkv; of GGUF this engine supports llama, qwen2, .*phi3"),
        ("qwen2", {"expert_count": 4}, "is a qwen2 with experts"),
        ("llama", {"general__type": "adapter"}, "is of the type adapter, a part of a model"),
        ("llama", {"block_count": None}, r"has no llama\.block_count; convert"),
        ("llama", {"attention__value_length": 8}, "keys of 16 dimensions and values of 8"),
        ("llama", {"logit_scale": 0.25}, r"llama\.logit_scale 0\.25, with which"),
        ("llama", {"attention__causal": False}, r"llama\.attention\.causal False"),
        (
            "llama",
            {"rope__scaling__type": "odd", "rope__scaling__factor": 2.0},
            "odd rope scaling; of GGUF this engine supports linear, yarn",
        ),
        ("llama", {"rope__freq_base": "x"}, r"llama\.rope\.freq_base 'x', which must be a number"),
        ("llama", {"attention__head_count": 0}, "num_attention_heads 0; it must be"),
        ("llama", {"context_length": "long"}, "context_length 'long', which must be a number"),
    ],
)
def test_what_is_not_supported_is_told(
    architecture: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig.from_config(config_with(tmp_path, architecture, **changes), tmp_path)
