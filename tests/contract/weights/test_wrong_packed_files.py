"""A wrong packed checkpoint ends the start with one sentence that names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from protocol.errors import UserError
from tests.support.quantised.fp8_packers import FP8_CASES
from tests.support.quantised.packed_checkpoints import (
    CONFIG,
    config_of,
    logits_of,
    projections,
    save,
    unpacked_tensors,
)
from tests.support.quantised.packers import INTEGER_CASES

FAMILY = "LlamaForCausalLM"
UP = "model.layers.0.mlp.up_proj"
Tensors = dict[str, Tensor]


def packed_tensors(name: str, family: str = FAMILY) -> tuple[Tensors, dict[str, Any]]:
    """Returns the tensors of a checkpoint in a format, and its quantization_config."""
    chance = torch.Generator().manual_seed(7)
    tensors = unpacked_tensors(family, chance)
    for module, shape in projections(family).items():
        if name in FP8_CASES:
            packed, _ = FP8_CASES[name].pack(*shape, chance)
        else:
            case = INTEGER_CASES[name]
            packed = case.pack(case.integers(*shape, chance))
        tensors |= {f"{module}.{kind}": tensor for kind, tensor in packed.items()}
    settings = (FP8_CASES[name] if name in FP8_CASES else INTEGER_CASES[name]).settings
    return tensors, settings


def without(kind: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[f"{UP}.{kind}"]

    return change


def replaced(kind: str, make: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[f"{UP}.{kind}"] = make(tensors[f"{UP}.{kind}"]).contiguous()

    return change


def with_nan(values: Tensor) -> Tensor:
    values.view(torch.uint8)[-1, -1] = 0xFF
    return values


WRONG: list[tuple[str, Callable[[Tensors], None], str]] = [
    ("awq", without("scales"), rf"lack {UP}\.scales; fetch"),
    ("awq", without("qzeros"), rf"lack {UP}\.qzeros; fetch"),
    ("awq", without("qweight"), rf"lack {UP}\.weight; fetch|hold {UP}\.\S+ .*does not have"),
    ("awq", replaced("qweight", lambda t: t[:, :-1]), r"up_proj\.qweight .* ask for \[128, 24\]"),
    ("awq", replaced("qzeros", lambda t: t[:-1]), r"up_proj\.qzeros .* ask for \[4, 24\]"),
    ("awq", replaced("qweight", lambda t: t.float()), r"F32 \[128, 24\]; it must have two .* I32"),
    ("awq", replaced("scales", lambda t: t.fill_(torch.nan)), r"up_proj\.scales .*NaN"),
    ("awq", replaced("scales", lambda t: t.int()), r"is I32; scales must be one of F16"),
    (
        "gptq",
        replaced("qweight", lambda t: torch.cat((t, t[:4]))),
        r"g_idx .* does not have 40 inputs for each of 4",
    ),
    ("gptq", replaced("g_idx", lambda t: t.fill_(0)), r"g_idx .*not have 32 inputs for each of 4"),
    ("gptq", replaced("g_idx", lambda t: t.float()), r"g_idx .*not have 32 inputs for each of 4"),
    ("gptq", replaced("g_idx", lambda t: t[None]), r"g_idx .*not have 32 inputs for each of 4"),
    ("gptq", without("scales"), rf"lack {UP}\.scales; fetch"),
    ("W4A16", without("weight_scale"), rf"lack {UP}\.weight_scale; fetch"),
    ("W4A16 with zero points", without("weight_zero_point"), r"lack .*weight_zero_point; fetch"),
    ("W4A16 with zero points", replaced("weight_scale", lambda t: t[:, :1]), r"groups of 128"),
    ("W8A16", replaced("weight_packed", lambda t: t[:, :-2]), r"groups of 30 .* says 32"),
    ("fp8 in blocks", replaced("weight", with_nan), r"up_proj\.values .*NaN .*in float8_e4m3fn"),
    ("fp8 in blocks", without("weight_scale_inv"), r"lack \S+up_proj\.weight_scale; fetch"),
    ("fp8 in blocks", replaced("weight_scale_inv", lambda t: t[:1]), r"scale for each of 1 blocks"),
    ("fp8 by tensor, static", without("activation_scale"), r"lack \S+input_scale; fetch"),
    (
        "fp8 by tensor, static",
        replaced("activation_scale", lambda t: t * 0),
        r"must be one positive number",
    ),
]


@pytest.mark.parametrize(("name", "change", "told"), WRONG)
def test_a_wrong_tensor_is_named(
    tmp_path: Path, name: str, change: Callable[[Tensors], None], told: str
) -> None:
    tensors, settings = packed_tensors(name)
    change(tensors)
    path = save(tmp_path / "model", tensors, config_of(FAMILY, quantization_config=settings))
    with pytest.raises(UserError, match=told):
        logits_of(path)


@pytest.mark.parametrize("is_v2", [False, True])
def test_zero_points_of_the_other_version_of_gptq_are_told(tmp_path: Path, is_v2: bool) -> None:
    """All zero points of a symmetric model are in the middle, so the version can be told."""
    tensors, settings = packed_tensors("gptq symmetric")
    if not is_v2:
        for name in tensors:
            if name.endswith("qzeros"):
                tensors[name] += 0x11111111
    settings = settings | {"checkpoint_format": "gptq_v2" if is_v2 else "gptq"}
    path = save(tmp_path / "model", tensors, config_of(FAMILY, quantization_config=settings))
    other = "gptq" if is_v2 else "gptq_v2"
    with pytest.raises(UserError, match=f"set checkpoint_format to '{other}' in its config"):
        logits_of(path)


def test_packed_and_plain_experts_are_not_mixed(tmp_path: Path) -> None:
    family, expert = "MixtralForCausalLM", "model.layers.0.block_sparse_moe.experts.1.w1"
    tensors, settings = packed_tensors("awq", family)
    for kind in ("qweight", "qzeros", "scales"):
        del tensors[f"{expert}.{kind}"]
    tensors[f"{expert}.weight"] = torch.zeros(CONFIG["intermediate_size"], CONFIG["hidden_size"])
    path = save(tmp_path / "model", tensors, config_of(family, quantization_config=settings))
    with pytest.raises(UserError, match=r"experts\.gate_proj are quantised in different ways"):
        logits_of(path)


def test_a_plain_file_with_the_settings_of_a_packed_one_is_told(tmp_path: Path) -> None:
    tensors = unpacked_tensors(FAMILY, torch.Generator())
    settings = INTEGER_CASES["awq"].settings
    path = save(tmp_path / "model", tensors, config_of(FAMILY, quantization_config=settings))
    with pytest.raises(UserError, match=r"hold no weight of awq, which config\.json says"):
        logits_of(path)


def test_a_truncated_file_is_told(tmp_path: Path) -> None:
    tensors, settings = packed_tensors("awq")
    path = save(tmp_path / "model", tensors, config_of(FAMILY, quantization_config=settings))
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read .*fetch the model"):
        logits_of(path)


def test_scales_of_pages_and_empty_biases_are_let_pass(tmp_path: Path) -> None:
    tensors, settings = packed_tensors("gptq")
    attention = "model.layers.0.self_attn"
    config = config_of(FAMILY, quantization_config=settings)
    expected = logits_of(save(tmp_path / "model", tensors, config))
    tensors |= {f"{attention}.{name}_scale": torch.ones(1) for name in "kv"}
    tensors[f"{attention}.q_proj.bias"] = torch.zeros(128)
    assert torch.equal(logits_of(save(tmp_path / "more", tensors, config)), expected)
    tensors[f"{attention}.q_proj.bias"][3] = 1.0
    with pytest.raises(UserError, match=r"hold \S+q_proj\.bias, which"):
        logits_of(save(tmp_path / "biased", tensors, config))
