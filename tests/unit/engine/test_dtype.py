"""`--dtype auto` takes the dtype that is fast on the device, whatever machine the tests run on."""

from __future__ import annotations

import pytest
import torch

from engine.model.families import UnsupportedModel
from engine.weights.dtype import cpu_has_amx, resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("checkpoint", "has_amx", "expected"),
    [
        ("bfloat16", True, torch.bfloat16),
        ("torch.bfloat16", True, torch.bfloat16),
        ("bfloat16", False, torch.float32),
        ("float16", True, torch.float32),
        ("float32", True, torch.float32),
        ("float32", False, torch.float32),
    ],
)
def test_a_cpu_takes_bfloat16_only_with_amx(
    checkpoint: str, has_amx: bool, expected: torch.dtype
) -> None:
    assert resolve_dtype("auto", checkpoint, CPU, has_amx) is expected


@pytest.mark.parametrize("has_amx", [False, True])
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_a_gpu_takes_the_checkpoints_and_any_device_what_it_is_told(
    name: str, has_amx: bool
) -> None:
    assert resolve_dtype("auto", name, CUDA, has_amx) is getattr(torch, name)
    assert resolve_dtype(name, "float32", CPU, has_amx) is getattr(torch, name)
    assert resolve_dtype(name, "bfloat16", CUDA, has_amx) is getattr(torch, name)


def test_avx512_bfloat16_is_not_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for has_tiles in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda value=has_tiles: value)
        assert cpu_has_amx() is has_tiles


def test_an_unknown_dtype_is_refused_with_those_that_are_known() -> None:
    for name, checkpoint in (("float64", "float32"), ("auto", "float64")):
        with pytest.raises(UnsupportedModel, match=r"float64; choose one of float32.*--dtype"):
            resolve_dtype(name, checkpoint, CUDA, False)
