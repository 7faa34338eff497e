"""What config.json says of quantisation is understood in all its dialects, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.model.config import ModelConfig
from engine.model.families import UnsupportedModel
from engine.model.quantisation import (
    Fp8Scheme,
    IntegerScheme,
    Quantisation,
    Scheme,
    read_quantisation,
)
from protocol.model.directory import read_config

Q, GATE, HEAD = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.gate_proj", "lm_head"
EXPERT = "model.layers.0.mlp.experts.0.up_proj"
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "GEMM", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True, "desc_act": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": False}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}


def compressed(weights: dict[str, Any], **changes: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights} | changes
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "ignore": [HEAD],
    }


def read(settings: dict[str, Any]) -> Quantisation:
    found = read_quantisation({"quantization_config": settings})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (AWQ, IntegerScheme(4, 128, True)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, IntegerScheme(4, 64, True)),
        (GPTQ, IntegerScheme(8, None, False)),
        (GPTQ | {"sym": False, "group_size": 32}, IntegerScheme(8, 32, True)),
        (compressed(INT4), IntegerScheme(4, 64, True)),
        (compressed(FLOAT8), Fp8Scheme(False, "exact")),
        (compressed(FLOAT8, input_activations=TOKEN), Fp8Scheme(False, "token")),
        (FP8, Fp8Scheme(True, "block")),
        (FP8 | {"weight_block_size": None}, Fp8Scheme(False, "token")),
        (
            FP8 | {"weight_block_size": None, "activation_scheme": "static"},
            Fp8Scheme(False, "static"),
        ),
    ],
)
def test_schemes(settings: dict[str, Any], expected: Scheme) -> None:
    found = read(settings)
    assert found.scheme_of(Q) == expected
    assert found.scheme_of(HEAD) is None


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        (AWQ | {"modules_to_not_convert": ["self_attn"]}, Q),
        (AWQ | {"modules_to_not_convert": [GATE]}, GATE),
        (FP8 | {"ignored_layers": ["model.layers.1"]}, GATE),
        (FP8 | {"modules_to_not_convert": ["model.layers.1.mlp.gate_proj"]}, GATE),
        (compressed(INT4) | {"ignore": [HEAD, Q]}, Q),
        (compressed(INT4) | {"ignore": [HEAD, r"re:.*layers\.1\..*"]}, GATE),
        (GPTQ | {"dynamic": {r"-:model\.layers\.0\..*": {}}}, Q),
    ],
)
def test_every_spelling_of_an_exclusion(settings: dict[str, Any], plain: str) -> None:
    found = read(settings)
    assert found.scheme_of(plain) is None
    assert found.scheme_of(Q if plain == GATE else GATE) is not None


def test_the_router_is_not_the_gate() -> None:
    found = read(FP8 | {"modules_to_not_convert": ["mlp.gate"]})
    assert found.scheme_of("model.layers.1.mlp.gate") is None
    assert found.scheme_of(GATE) is not None


def test_groups_of_modules_have_schemes_of_their_own() -> None:
    settings = compressed(INT4)
    settings["config_groups"] = {
        "attention": {
            "targets": ["re:.*self_attn.*"],
            "weights": FLOAT8,
            "input_activations": TOKEN,
        },
        "rest": {"targets": ["Linear"], "weights": INT4},
    }
    found = read(settings)
    assert found.scheme_of(Q) == Fp8Scheme(False, "token")
    assert found.scheme_of(EXPERT) == IntegerScheme(4, 64, True)


def test_dynamic_rules_of_gptq_change_bits() -> None:
    found = read(GPTQ | {"dynamic": {r"+:.*mlp\..*": {"bits": 4, "group_size": 32}}})
    assert found.scheme_of(GATE) == IntegerScheme(4, 32, False)
    assert found.scheme_of(Q) == IntegerScheme(8, None, False)


def test_gptq_may_quantise_the_head_and_store_zero_points_as_they_are() -> None:
    found = read(GPTQ | {"lm_head": True, "checkpoint_format": "gptq_v2"})
    assert found.scheme_of(HEAD) == IntegerScheme(8, None, False)
    assert found.is_gptq_v2 and not read(GPTQ).is_gptq_v2


@pytest.mark.parametrize(
    ("name", "method"), [("quantize_config.json", "gptq"), ("quant_config.json", "awq")]
)
def test_settings_may_be_in_a_file_of_their_own(tmp_path: Path, name: str, method: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(json.dumps({"bits": 4, "group_size": 128}))
    found = read_quantisation(read_config(tmp_path))
    assert found is not None and found.method == method


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"quant_method": "torchao"}, "torchao"),
    ({"quant_method": "mxfp4"}, "mxfp4"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt"),
    ({"quant_method": "hqq"}, "hqq"),
    ({"quant_method": "quark"}, "quark"),
    ({"quant_method": "auto-round"}, "auto-round"),
    ({"quant_method": "of-tomorrow"}, "of-tomorrow"),
    ({"load_in_8bit": True}, "does not name"),
    (AWQ | {"version": "gemv"}, "version 'gemv'"),
    (AWQ | {"version": "marlin"}, "version 'marlin'"),
    (AWQ | {"bits": 3}, "3 bits"),
    (AWQ | {"zero_point": False}, "without zero points"),
    (AWQ | {"group_size": 100}, "groups of 100"),
    (GPTQ | {"bits": 2}, "2 bits"),
    (GPTQ | {"bits": 3}, "3 bits"),
    (GPTQ | {"group_size": 16}, "groups of 16"),
    (GPTQ | {"checkpoint_format": "marlin"}, "format 'marlin'"),
    (GPTQ | {"is_marlin_format": True}, "format 'marlin'"),
    (FP8 | {"weight_block_size": [64, 64]}, r"blocks of \[64, 64\]"),
    (FP8 | {"fmt": "e5m2"}, "e5m2"),
    (FP8 | {"expert_dtype": "fp4"}, "fp4"),
    (FP8 | {"activation_scheme": "none"}, "activation_scheme 'none'"),
    (compressed(INT4 | {"num_bits": 2}), "2 bits"),
    (compressed(INT4 | {"actorder": "group"}), "actorder"),
    (compressed(INT4 | {"type": "float", "strategy": "tensor_group"}), "float of 4 bits"),
    (compressed(INT4 | {"num_bits": 8}, input_activations=TOKEN), "integers for activations"),
    (compressed(INT4 | {"strategy": "tensor"}), "scaled by tensor"),
    (compressed(INT4) | {"sparsity_config": {"format": "sparse-24"}}, "sparse"),
    (compressed(INT4) | {"config_groups": {}}, "no config_groups"),
    (compressed(FLOAT8 | {"strategy": "group"}), "scaled by group"),
]


@pytest.mark.parametrize(("settings", "told"), REFUSED)
def test_what_is_not_read_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    """config.json is all that is there."""
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=rf"{told}.*this engine reads AWQ .*GPTQ .*GGUF"):
        ModelConfig.from_directory(tmp_path)
