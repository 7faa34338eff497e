"""Which attention back end is chosen, and what is said where one cannot be had."""

from __future__ import annotations

import pytest
import torch

from engine.attention import attention_backends
from engine.attention.attention_backends import AttentionUnavailable, captures, make_attention
from protocol.layout import FP8, KVLayout
from tests.support.engine.native import compiled

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LAYOUT = KVLayout(16, 2, 4, 64, "bfloat16")


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_a_cpu_computes_in_torch(name: str) -> None:
    attention = make_attention(name, False, LAYOUT, CPU)
    assert attention.name == "torch"
    assert not captures(attention)


@pytest.mark.parametrize("name", ["auto", "native"])
def test_a_cpu_with_native_kernels_uses_them(name: str) -> None:
    attention = make_attention(name, False, LAYOUT, CPU, library=compiled())
    assert attention.name == "native"
    assert not captures(attention)
    assert make_attention("torch", False, LAYOUT, CPU, library=compiled()).name == "torch"


def test_native_attention_without_native_kernels_is_a_sentence() -> None:
    with pytest.raises(AttentionUnavailable, match="native needs a CPU, --dtype float32 and a C"):
        make_attention("native", False, LAYOUT, CPU)


@pytest.mark.parametrize("name", ["flash", "varlen", "triton"])
def test_a_cpu_has_no_other(name: str) -> None:
    with pytest.raises(AttentionUnavailable, match=f"{name} needs a CUDA device; use torch or"):
        make_attention(name, False, LAYOUT, CPU)


def test_without_triton_torch_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_backends, "find_spec", lambda name: None)
    assert make_attention("auto", False, LAYOUT, CUDA).name == "torch"
    with pytest.raises(AttentionUnavailable, match="the package triton, which is not installed"):
        make_attention("flash", False, LAYOUT, CUDA)


@pytest.mark.parametrize("name", ["flash", "varlen"])
def test_no_library_reads_fp8_pages(name: str) -> None:
    refusal = attention_backends._refusal(name, False, KVLayout(16, 2, 4, 64, FP8, "token"))
    assert "use triton, or leave --kv-cache-dtype out" in refusal
    assert attention_backends._refusal(name, False, LAYOUT) == ""


def test_deterministic_attention_is_one_of_its_own() -> None:
    assert make_attention("auto", False, LAYOUT, CPU, deterministic=True).name == "deterministic"
    with pytest.raises(AttentionUnavailable, match="leave --attention-backend triton out"):
        make_attention("triton", False, LAYOUT, CPU, deterministic=True)
