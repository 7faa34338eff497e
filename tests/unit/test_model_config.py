"""What `ModelConfig` reads from config.json, in every dialect, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.fingerprint import model_fingerprint
from engine.model_config import ModelConfig, RopeScaling, UnsupportedModel
from protocol.errors import UserError
from protocol.model_directory import ModelDirectoryError

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


def config_of(path: Path, **changes: Any) -> ModelConfig:
    (path / "config.json").write_text(json.dumps(BASE | changes))
    return ModelConfig.from_directory(path)


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
    assert old.rope_theta == 500_000.0
    assert old.rope_scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    assert old.checkpoint_dtype == "bfloat16"


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_linear_scaling_by_either_name(tmp_path: Path, key: str) -> None:
    config = config_of(tmp_path, rope_scaling={key: "linear", "factor": 4.0})
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("linear", 4.0)


def test_what_is_left_out_has_the_defaults_of_transformers(tmp_path: Path) -> None:
    config = config_of(tmp_path, num_key_value_heads=None, head_dim=None, rope_scaling=None)
    assert config.num_kv_heads == config.num_heads == 4
    assert config.head_dim == 16
    assert config.rope_theta == 10_000.0
    assert config.rope_scaling == RopeScaling()
    assert not config.tie_word_embeddings
    assert config.checkpoint_dtype == "float32"


@pytest.mark.parametrize(
    ("architecture", "qkv_bias", "o_bias", "qk_norm"),
    [
        ("LlamaForCausalLM", False, False, False),
        ("MistralForCausalLM", False, False, False),
        ("Qwen2ForCausalLM", True, False, False),
        ("Qwen3ForCausalLM", False, False, True),
    ],
)
def test_families(
    tmp_path: Path, architecture: str, qkv_bias: bool, o_bias: bool, qk_norm: bool
) -> None:
    config = config_of(tmp_path, architectures=[architecture])
    assert (config.qkv_bias, config.o_bias, config.qk_norm) == (qkv_bias, o_bias, qk_norm)
    assert not config.mlp_bias


def test_only_mistral_has_a_window(tmp_path: Path) -> None:
    mistral = config_of(tmp_path, architectures=["MistralForCausalLM"], sliding_window=32)
    assert mistral.sliding_window == 32
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32}
    assert config_of(tmp_path, **qwen, use_sliding_window=False).sliding_window is None
    with pytest.raises(UnsupportedModel, match="use_sliding_window"):
        config_of(tmp_path, **qwen, use_sliding_window=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*LlamaForCausalLM.*Qwen3"),
        ({"architectures": None}, "unknown.*LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised.*bfloat16"),
        ({"hidden_act": "gelu"}, "gelu.*silu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn.*llama3"),
    ],
)
def test_what_it_cannot_run_it_refuses_by_name(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        config_of(tmp_path, **changes)


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


class TestFingerprint:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        path = tmp_path / "model"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(BASE))
        (path / "model.safetensors").write_bytes(bytes(range(256)) * 1024)
        return path

    def test_copies_agree(self, model: Path, tmp_path: Path) -> None:
        copy = tmp_path / "elsewhere"
        shutil.copytree(model, copy)
        reordered = dict(reversed(BASE.items())) | {
            "transformers_version": "9",
            "_name_or_path": "",
        }
        (copy / "config.json").write_text(json.dumps(reordered))
        (copy / "README.md").write_text("not part of the model")
        assert model_fingerprint(copy) == model_fingerprint(model)
        assert re.fullmatch("[0-9a-f]{32}", model_fingerprint(model))

    def test_anything_that_changes_answers_changes_it(self, model: Path) -> None:
        seen = {model_fingerprint(model)}
        weights = model / "model.safetensors"
        raw = weights.read_bytes()

        def is_new() -> bool:
            before = len(seen)
            seen.add(model_fingerprint(model))
            return len(seen) == before + 1

        weights.write_bytes(raw + b"\0")
        assert is_new(), "another size"
        weights.write_bytes(b"\xff" + raw[1:])
        assert is_new(), "another header"
        weights.write_bytes(bytes(255 - byte for byte in raw))
        assert is_new(), "other weights of the same shapes"
        weights.write_bytes(raw)
        (model / "config.json").write_text(json.dumps(BASE | {"rope_theta": 5.0}))
        assert is_new(), "another config"

    def test_no_weights(self, model: Path) -> None:
        (model / "model.safetensors").unlink()
        with pytest.raises(ModelDirectoryError, match=r"no \*\.safetensors.*save_pretrained"):
            model_fingerprint(model)
