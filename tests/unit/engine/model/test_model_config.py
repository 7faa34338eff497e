"""What `ModelConfig` reads from config.json, in every dialect, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.model.config import ExpertsConfig, LayerConfig, ModelConfig
from engine.model.families import UnsupportedModel
from engine.model.rope import inverse_frequencies
from engine.model.rope_config import RopeConfig
from protocol.errors import UserError
from protocol.model.directory import ModelDirectoryError

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
LLAMA3_SCALING = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def config_of(path: Path, **changes: Any) -> ModelConfig:
    (path / "config.json").write_text(json.dumps(BASE | changes))
    return ModelConfig.from_directory(path)


def rope_of(config: ModelConfig) -> RopeConfig:
    return config.layers[0].rope


def test_both_dialects_say_the_same(tmp_path: Path) -> None:
    old = config_of(
        tmp_path,
        rope_theta=500_000.0,
        rope_scaling={"rope_type": "llama3", **LLAMA3_SCALING},
        torch_dtype="bfloat16",
    )
    new = config_of(
        tmp_path,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500_000.0, **LLAMA3_SCALING},
        dtype="bfloat16",
    )
    assert old == new
    assert rope_of(old) == RopeConfig(16, 500_000.0, "llama3", 32.0, 8192)
    assert old.checkpoint_dtype == "bfloat16"


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_linear_scaling_by_either_name(tmp_path: Path, key: str) -> None:
    config = config_of(tmp_path, rope_scaling={key: "linear", "factor": 4.0})
    assert rope_of(config) == RopeConfig(16, 10_000.0, "linear", 4.0)


def test_what_is_left_out_has_the_defaults_of_transformers(tmp_path: Path) -> None:
    config = config_of(tmp_path, num_key_value_heads=None, head_dim=None, rope_scaling=None)
    assert config.num_kv_heads == config.num_heads == 4
    assert config.head_dim == 16
    assert config.layers == (LayerConfig(None, RopeConfig(16, 10_000.0), False),) * 2
    assert not config.tie_word_embeddings
    assert config.checkpoint_dtype == "float32"
    assert rope_of(config_of(tmp_path, **MIXTRAL)).theta == 1_000_000.0


@pytest.mark.parametrize(
    ("architecture", "qkv_bias", "o_bias", "qk_norm"),
    [
        ("LlamaForCausalLM", False, False, False),
        ("MistralForCausalLM", False, False, False),
        ("Qwen2ForCausalLM", True, False, False),
        ("Qwen3ForCausalLM", False, False, True),
        ("Gemma2ForCausalLM", False, False, False),
        ("Gemma3ForCausalLM", False, False, True),
        ("Phi3ForCausalLM", False, False, False),
    ],
)
def test_families(
    tmp_path: Path, architecture: str, qkv_bias: bool, o_bias: bool, qk_norm: bool
) -> None:
    config = config_of(tmp_path, architectures=[architecture])
    assert (config.qkv_bias, config.o_bias, config.qk_norm) == (qkv_bias, o_bias, qk_norm)
    assert not config.mlp_bias


class TestWindows:
    def windows(self, path: Path, architecture: str, **changes: Any) -> list[int | None]:
        changes = {"num_hidden_layers": 7, "sliding_window": 32} | changes
        config = config_of(path, architectures=[architecture], **changes)
        return [layer.window for layer in config.layers]

    def test_mistral_has_one_in_every_layer_unless_it_is_null(self, tmp_path: Path) -> None:
        assert self.windows(tmp_path, "MistralForCausalLM") == [32] * 7
        assert self.windows(tmp_path, "MistralForCausalLM", sliding_window=None) == [None] * 7

    @pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
    def test_qwen_has_one_in_late_layers_if_it_uses_it(
        self, tmp_path: Path, architecture: str
    ) -> None:
        assert self.windows(tmp_path, architecture) == [None] * 7
        used = {"use_sliding_window": True}
        late = self.windows(tmp_path, architecture, **used, max_window_layers=5)
        assert late == [None] * 5 + [32] * 2
        types = ["sliding_attention"] + ["full_attention"] * 6
        assert self.windows(tmp_path, architecture, **used, layer_types=types)[:2] == [32, None]

    def test_gemma_has_one_in_all_but_every_second_or_sixth_layer(self, tmp_path: Path) -> None:
        assert self.windows(tmp_path, "Gemma2ForCausalLM") == [32, None] * 3 + [32]
        six = [32] * 5 + [None, 32]
        assert self.windows(tmp_path, "Gemma3ForCausalLM") == six
        pattern = self.windows(tmp_path, "Gemma3ForCausalLM", sliding_window_pattern=3)
        assert pattern == [32, 32, None] * 2 + [32]


class TestRopes:
    def test_gemma3_has_two_in_either_dialect(self, tmp_path: Path) -> None:
        gemma = {
            "architectures": ["Gemma3ForCausalLM"],
            "head_dim": 16,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
        }
        scaling = {"rope_type": "linear", "factor": 8.0}
        old = config_of(
            tmp_path,
            **gemma,
            rope_theta=1e6,
            rope_local_base_freq=1e4,
            rope_scaling=scaling,
        )
        new = config_of(
            tmp_path,
            **gemma,
            rope_parameters={
                "full_attention": {"rope_theta": 1e6, **scaling},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
        )
        assert old == new == config_of(tmp_path, **gemma, rope_scaling=scaling)
        ropes = [layer.rope for layer in old.layers]
        assert ropes == [RopeConfig(16, 1e4), RopeConfig(16, 1e6, "linear", 8.0)]

    def test_yarn_has_the_attention_factor_of_its_parameters(self, tmp_path: Path) -> None:
        yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
        assert rope_of(config_of(tmp_path, rope_scaling=yarn)).attention_factor == pytest.approx(
            1 + 0.1 * math.log(4)
        )
        both = yarn | {"mscale": 2.0, "mscale_all_dim": 1.0}
        expected = (1 + 0.2 * math.log(4)) / (1 + 0.1 * math.log(4))
        rope = rope_of(config_of(tmp_path, rope_scaling=both))
        assert rope.attention_factor == pytest.approx(expected)
        given = yarn | {"attention_factor": 1.5}
        assert rope_of(config_of(tmp_path, rope_scaling=given)).attention_factor == 1.5

    @pytest.mark.parametrize("name", ["longrope", "su"])
    def test_longrope_chooses_its_table_by_the_served_length(
        self, tmp_path: Path, name: str
    ) -> None:
        phi = {
            "architectures": ["Phi3ForCausalLM"],
            "original_max_position_embeddings": 512,
            "partial_rotary_factor": 0.25,
            "rope_scaling": {"type": name, "short_factor": [1.0, 2.0], "long_factor": [4.0, 5.0]},
        }
        rope = rope_of(config_of(tmp_path, **phi))
        assert (rope.rotary_dim, rope.divisors) == (4, (4.0, 5.0)), "up to the model's limit"
        assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(512)))
        short = rope_of(ModelConfig.from_directory(tmp_path, context_length=512))
        assert short.divisors == (1.0, 2.0)
        assert rope_of(ModelConfig.from_directory(tmp_path, context_length=513)) == rope


def test_experts(tmp_path: Path) -> None:
    mixtral = config_of(tmp_path, **MIXTRAL)
    assert mixtral.experts == ExpertsConfig(4, 2, 96, is_normalised=True)
    assert all(layer.has_experts for layer in mixtral.layers)
    qwen = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": 6,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
    }
    config = config_of(tmp_path, **qwen, decoder_sparse_step=2, mlp_only_layers=[3])
    assert config.experts == ExpertsConfig(8, 3, 24, is_normalised=False)
    assert [layer.has_experts for layer in config.layers] == [
        False,
        True,
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*LlamaForCausalLM.*Qwen3"),
        ({"architectures": None}, "/config.json names no architecture;.*LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised.*bfloat16"),
        ({"hidden_act": "gelu"}, "gelu.*silu"),
        ({"hidden_act": ["silu"]}, r"\['silu'\].*silu"),
        ({"rope_scaling": {"rope_type": "axial", "factor": 4.0}}, "axial.*llama3"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "no page could be shared.*yarn"),
        ({"use_bidirectional_attention": True}, "later tokens"),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention", "chunked_attention"],
            },
            "chunked_attention.*sliding_attention",
        ),
    ],
)
def test_what_it_cannot_run_it_refuses_by_name(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        config_of(tmp_path, **changes)


QWEN2 = {"architectures": ["Qwen2ForCausalLM"]}
QWEN_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 8,
    "moe_intermediate_size": 24,
}
PHI3 = {"architectures": ["Phi3ForCausalLM"]}
GEMMA2 = {"architectures": ["Gemma2ForCausalLM"]}
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = LINEAR | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vocab_size": 10**12}, "vocab_size 1000000000000; .* from 1 to 4194304"),
        ({"num_attention_heads": "six"}, "num_attention_heads 'six'; .*whole number"),
        ({"num_attention_heads": 4.0}, r"num_attention_heads 4\.0; .*whole number"),
        ({"num_attention_heads": True}, "num_attention_heads True"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers -1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
        ({"hidden_size": [64]}, r"hidden_size \[64\]"),
        ({"hidden_size": 10**9}, "hidden_size 1000000000"),
        ({"intermediate_size": None}, "no intermediate_size"),
        ({"max_position_embeddings": "2k"}, "max_position_embeddings '2k'"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 and num_key_value_heads 3"),
        ({"hidden_size": 66}, "hidden_size 66, num_attention_heads 4 and no head_dim"),
        ({"head_dim": 0}, "head_dim 0"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps 'small'; .*number above 0"),
        ({"rms_norm_eps": -1.0}, r"rms_norm_eps -1\.0"),
        ({"rms_norm_eps": 1e300}, r"rms_norm_eps 1e\+300; .*float32"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps 1000"),
        ({"rope_theta": 0}, "rope_theta 0"),
        ({"rope_theta": 1}, "rope_theta 1; .* from 2"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings 'yes'; .*true or false"),
        ({"attention_bias": 1}, "attention_bias 1"),
        ({"architectures": "LlamaForCausalLM"}, "architectures 'LlamaForCausalLM'; .*list"),
        ({"rope_scaling": [4]}, r"rope_scaling \[4\]; .*object"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor '4'"),
        ({"rope_scaling": {"type": "linear"}}, "no factor"),
        ({"rope_scaling": LINEAR | {"factor": 0.5}}, r"factor 0\.5; .* from 1"),
        ({"rope_scaling": YARN | {"factor": 1e9}}, "factor 1000000000"),
        ({"rope_scaling": YARN | {"attention_factor": "1"}}, "attention_factor '1'"),
        ({"rope_scaling": YARN | {"mscale": [1], "mscale_all_dim": 1}}, r"mscale \[1\]"),
        ({"rope_scaling": YARN | {"mscale": 1, "mscale_all_dim": "1"}}, "mscale_all_dim '1'"),
        ({"rope_scaling": YARN | {"truncate": "false"}}, "truncate 'false'; .*true or false"),
        (
            {"rope_scaling": YARN | {"original_max_position_embeddings": 0.5}},
            r"original_max_position_embeddings 0\.5; .* from 2",
        ),
        (
            {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}},
            r"low_freq_factor 4\.0; .* less than high_freq_factor, which is 4",
        ),
        (
            {"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 5e5}},
            r"rope_scaling .*linear.* would be 10000, .*rope_theta 500000\.0",
        ),
        (
            QWEN2
            | {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"]},
            "layer_types for 1 layers and num_hidden_layers 2",
        ),
        (
            QWEN2 | {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2},
            "layer_types with sliding_attention, and no sliding_window",
        ),
        (QWEN2 | {"sliding_window": 8, "use_sliding_window": "no"}, "use_sliding_window 'no'"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": -8}, "sliding_window -8"),
        (QWEN_MOE | {"num_local_experts": 4}, "num_local_experts 4 and num_experts 8"),
        (QWEN_MOE | {"num_experts_per_tok": 9}, "num_experts_per_tok 9 and 8 experts"),
        (QWEN_MOE | {"mlp_only_layers": 1}, "mlp_only_layers 1"),
        (
            PHI3
            | {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "short_factor with 1 values; 8 pairs",
        ),
        (
            {"architectures": ["Gemma3ForCausalLM"], "rope_parameters": {"rope_theta": 5.0}},
            "rope_parameters .*full_attention and sliding_attention",
        ),
    ],
)
def test_values_that_cannot_be_are_told_with_their_keys(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelDirectoryError, match=says):
        config_of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5"),
        ({"head_dim": 15}, "15 dimensions of a head of 15"),
        (PHI3 | {"rope_scaling": LINEAR}, "linear .*Phi-3"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "su rope scaling"),
        ({"rope_parameters": {"full_attention": LINEAR}}, "each type of layer"),
        ({"attention_multiplier": 0.1}, r"attention_multiplier 0\.1"),
        ({"logits_scaling": 8.0}, r"logits_scaling 8\.0"),
        ({"final_logit_softcapping": 30.0}, r"final_logit_softcapping 30\.0"),
        ({"query_pre_attn_scalar": 8}, "query_pre_attn_scalar 8"),
        ({"num_local_experts": 8}, "num_local_experts 8"),
        ({"lm_head_bias": True}, "lm_head_bias True"),
        (GEMMA2 | {"sliding_window_pattern": 6}, "sliding_window_pattern 6"),
        ({"compression_config": {"format": "int"}}, "quantised"),
    ],
)
def test_what_the_architecture_does_not_have_is_refused_and_not_ignored(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        config_of(tmp_path, **changes)


def test_neutral_values_of_other_architectures_pass(tmp_path: Path) -> None:
    neutral = {"attention_multiplier": 1.0, "final_logit_softcapping": None, "lm_head_bias": False}
    assert config_of(tmp_path, **neutral) == config_of(tmp_path)


class TestContextLength:
    @pytest.mark.parametrize(
        ("changes", "length"),
        [
            ({}, 64),
            ({"rope_scaling": LINEAR}, 256),
            ({"rope_parameters": LINEAR}, 256),
            ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 256),
            (
                {
                    "rope_scaling": {
                        "type": "yarn",
                        "factor": 4.0,
                        "original_max_position_embeddings": 16,
                    }
                },
                64,
            ),
            ({"rope_scaling": {"rope_type": "llama3", **LLAMA3_SCALING}}, 64),
            (
                {
                    "architectures": ["Gemma3ForCausalLM"],
                    "sliding_window": 8,
                    "rope_scaling": LINEAR,
                },
                64,
            ),
        ],
    )
    def test_it_is_stretched_where_the_scaling_says_so(
        self, tmp_path: Path, changes: dict[str, Any], length: int
    ) -> None:
        changes = changes | {"max_position_embeddings": 64}
        assert config_of(tmp_path, **changes).context_length == length
        assert ModelConfig.from_directory(tmp_path, context_length=length)
        with pytest.raises(UnsupportedModel, match=rf"{length + 1}, and the model .*{length} tok"):
            ModelConfig.from_directory(tmp_path, context_length=length + 1)


class TestAsTransformers:
    """Ropes of configs whose keys overlap or disagree are those that transformers computes."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"rope_scaling": LINEAR, "rope_theta": 5e5},
            {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default"}},
            {"rope_scaling": LINEAR, "rope_parameters": {**LINEAR, "factor": 8.0}},
            {"rope_scaling": LINEAR, "rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5}},
            {"rope_scaling": {}, "rope_parameters": {**LINEAR, "factor": 8.0}},
            {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 3e5}},
            {"rope_theta": 5e5, "rope_parameters": LINEAR},
            {
                "original_max_position_embeddings": 128,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 512,
                },
            },
            {"rope_scaling": {"type": "yarn", "factor": None}},
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3_SCALING}, "rope_theta": 5e5},
            {"original_max_position_embeddings": 512, "rope_scaling": LINEAR},
        ],
    )
    def test_ropes_of_llama(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        rope = rope_of(config_of(tmp_path, **changes))
        reference = LlamaRotaryEmbedding(LlamaConfig.from_dict(BASE | copy.deepcopy(changes)))
        ours = inverse_frequencies(rope, torch.device("cpu"))
        assert torch.equal(ours, reference.inv_freq), reference.config.rope_parameters
        assert rope.attention_factor == pytest.approx(reference.attention_scaling)

    @pytest.mark.parametrize(
        "changes",
        [
            {"rope_scaling": LINEAR},
            {"rope_theta": 3e5, "rope_local_base_freq": 77.0},
            {
                "rope_scaling": LINEAR,
                "rope_parameters": {
                    "full_attention": {"rope_theta": 5e5, "rope_type": "default"},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            {"rope_parameters": {"full_attention": {"rope_theta": 5e5, "rope_type": "default"}}},
        ],
    )
    def test_ropes_of_gemma3(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        gemma = BASE | {
            "architectures": ["Gemma3ForCausalLM"],
            "head_dim": 16,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
        }
        sliding, full = (layer.rope for layer in config_of(tmp_path, **gemma, **changes).layers)
        reference = Gemma3RotaryEmbedding(
            Gemma3TextConfig.from_dict(gemma | copy.deepcopy(changes))
        )
        for name, rope in (("sliding_attention", sliding), ("full_attention", full)):
            ours = inverse_frequencies(rope, torch.device("cpu"))
            assert torch.equal(ours, getattr(reference, f"{name}_inv_freq"))


def test_the_text_part_decides_about_text(tmp_path: Path) -> None:
    text = {key: value for key, value in BASE.items() if key != "architectures"}
    gemma = {"sliding_window": 8, "sliding_window_pattern": 2, "head_dim": 16}
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "hidden_size": 9999,
        "tie_word_embeddings": False,
        "text_config": text | gemma | {"tie_word_embeddings": True},
    }
    (tmp_path / "config.json").write_text(json.dumps(outer))
    config = ModelConfig.from_directory(tmp_path)
    assert config.hidden_size == 64 and not config.tie_word_embeddings


def test_broken_directories_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=r"no model directory .*nowhere.*--model-path"):
        ModelConfig.from_directory(tmp_path / "nowhere")
    with pytest.raises(ModelDirectoryError, match=r"no config\.json"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelDirectoryError, match="no JSON"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ModelDirectoryError, match="no num_attention_heads"):
        ModelConfig.from_directory(tmp_path)
    assert issubclass(ModelDirectoryError, UserError)
    assert issubclass(UnsupportedModel, UserError)


@pytest.mark.parametrize("name", ["config.json", "quantize_config.json", "quant_config.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "\ufeff{}"])
def test_a_file_that_is_no_json_is_named(tmp_path: Path, name: str, text: str) -> None:
    config_of(tmp_path)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ModelDirectoryError, match=rf"/{name} is no JSON .*fetch it again"):
        ModelConfig.from_directory(tmp_path)


@pytest.mark.parametrize("model_type", [None, 5, ["llama"], {"llama": 1}])
def test_the_type_of_a_text_part_may_be_anything(tmp_path: Path, model_type: Any) -> None:
    plain = config_of(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    text = {key: value for key, value in raw.items() if key != "architectures"}
    nested = {"architectures": raw["architectures"], "text_config": text}
    nested["text_config"]["model_type"] = model_type
    (tmp_path / "config.json").write_text(json.dumps(nested))
    assert ModelConfig.from_directory(tmp_path) == plain
