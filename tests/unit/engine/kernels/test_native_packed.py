"""Native products with packed weights against the reference in torch, with the instructions of this
CPU and with fewer."""

from __future__ import annotations

import platform
from ctypes import CDLL
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from engine.build import load_model_runner
from engine.errors import OptionUnavailable
from engine.kernels.base import TorchKernels
from engine.kernels.dequantise import dequantise, inputs_of, packed_nibbles
from engine.kernels.native import build
from engine.kernels.native_kernels import NativeKernels
from engine.kernels.native_packed import SPAN, native_weight
from engine.kernels.packed_weights import (
    BlockKind,
    BlockWeight,
    Fp8Weight,
    IntegerWeight,
    PackedWeight,
    expert_of,
)
from engine.options import EngineOptions
from protocol.config import ConfigError
from protocol.model.gguf.tensor_types import BLOCK_TYPES
from tests.support.engine.native import compiled
from tests.support.gguf.random_blocks import random_blocks
from tests.support.models.checkpoints import checkpoint, save

CPU = torch.device("cpu")
PLAIN = TorchKernels()
INTEGERS = [
    *("int4", "int4 zeros", "int4 order", "int4 half", "int4 rows"),
    *("int8", "int8 zeros", "int8 bfloat16", "int8 rows"),
]
FLOATS = ["fp8", "fp8 blocks", "fp8 token", "fp8 static"]
EVERY = [*BLOCK_TYPES, *INTEGERS, *FLOATS]
ROUNDED = [*BLOCK_TYPES, *INTEGERS]
"""Those that take inputs of eight bits."""
SHAPES = [(37, 768), (3, 256), (16, 1280)]
"""Outputs, which are whole vectors or not, and inputs."""
EPSILON = 3e-7
"""The error of a product, relative to the sum of the sizes of what is added."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_weight(name: str, num_out: int, num_in: int, *experts: int) -> PackedWeight:
    """Returns a weight [*experts, out, in] of the kind that the first word of `name` says."""
    chance = torch.Generator().manual_seed(EVERY.index(name))
    shape = (*experts, num_out)
    if name in BLOCK_TYPES:
        blocks = random_blocks(cast("BlockKind", name), *shape, num_in)
        return BlockWeight(torch.from_numpy(blocks), cast("BlockKind", name))
    kind, *words = name.split()
    num_groups = 1 if "rows" in words else num_in // 64
    if kind == "fp8":
        num_groups = -(-num_in // 128) if "blocks" in words else 1
    scales = torch.rand(*shape, num_groups, generator=chance).add_(0.1)
    if kind == "fp8":
        values = torch.randn(*shape, num_in, generator=chance).mul_(8).to(torch.float8_e4m3fn)
        activations = words[0] if words and words[0] in ("token", "static") else "exact"
        scale = torch.full((*experts, 1), 0.01) if activations == "static" else None
        return Fp8Weight(values, scales, activations, scale)  # type: ignore[arg-type]
    low, high = (0, 16) if kind == "int4" else (-128, 128)
    dtype = torch.uint8 if kind == "int4" else torch.int8
    values, zeros = (
        torch.randint(low, high, (*shape, size), generator=chance).to(dtype)
        for size in (num_in, num_groups)
    )
    orders = [torch.randperm(num_in, generator=chance) for _ in range(max(1, *experts, 1))]
    order = torch.stack(orders).view(*experts, num_in)
    return IntegerWeight(
        packed_nibbles(values) if kind == "int4" else values,
        scales.half() if "half" in words else scales.bfloat16() if "bfloat16" in words else scales,
        zeros if "zeros" in words else None,
        order if "order" in words else None,
    )


def check(kernels: NativeKernels, name: str, num_rows: int, num_out: int, num_in: int) -> None:
    """Compares a product with that in float64 of the dequantised weight."""
    weight, bias = random_weight(name, num_out, num_in), random(num_out)
    x = random(num_rows, num_in, seed=num_rows)
    inputs, numbers = inputs_of(x, weight).double(), dequantise(weight).double()
    if kernels.rounds_inputs:
        inputs = rounded(inputs)
    expected, sizes = inputs @ numbers.t() + bias, inputs.abs() @ numbers.abs().t() + 1
    actual = kernels.packed_linear(x, weight, bias)
    assert actual.shape == (num_rows, num_out)
    assert ((actual - expected).abs() / sizes).max() < EPSILON
    assert torch.allclose(kernels.packed_linear(x, weight, None) + bias, actual, atol=1e-3)


def rounded(x: Tensor) -> Tensor:
    """Returns what is left of `x` [rows, in] when each 32 inputs have eight bits."""
    units = x.unflatten(1, (-1, 32))
    scales = units.abs().amax(-1, keepdim=True) / 127
    return (units / scales).round().mul_(scales).flatten(1)


@pytest.fixture(params=[False, True], ids=["exact", "int8"])
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(compiled(), rounds_inputs=request.param)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 40])
@pytest.mark.parametrize("name", EVERY)
def test_products_are_those_of_the_reference(name: str, num_rows: int) -> None:
    for num_out, num_in in SHAPES:
        check(NativeKernels(compiled()), name, num_rows, num_out, num_in)


@pytest.mark.parametrize("num_rows", [1, 3, 9, 40])
@pytest.mark.parametrize("name", ROUNDED)
def test_products_of_rounded_inputs_are_exact(name: str, num_rows: int) -> None:
    for num_out, num_in in SHAPES:
        check(NativeKernels(compiled(), rounds_inputs=True), name, num_rows, num_out, num_in)


@pytest.mark.parametrize("name", ["int4", "int8", "Q4_1", "Q8_0"])
def test_rows_need_not_be_whole_spans(kernels: NativeKernels, name: str) -> None:
    num_in = SPAN + 64
    check(kernels, name, 5, 20, num_in)
    check(kernels, name, 1, 20, 64)


@pytest.mark.parametrize("name", EVERY)
def test_bits_of_a_row_depend_neither_on_company_nor_on_threads(
    kernels: NativeKernels, name: str
) -> None:
    weight, x = random_weight(name, 37, 768), random(70, 768)
    together = kernels.packed_linear(x, weight, None)
    for begin, end in ((0, 1), (1, 3), (3, 6), (6, 14), (14, 33), (5, 70)):
        assert torch.equal(kernels.packed_linear(x[begin:end], weight, None), together[begin:end])
    torch.set_num_threads(2)
    try:
        assert torch.equal(kernels.packed_linear(x, weight, None), together)
        assert torch.equal(kernels.packed_linear(x[:1], weight, None), together[:1])
    finally:
        torch.set_num_threads(1)


def test_more_rows_than_are_computed_at_once(kernels: NativeKernels) -> None:
    weight, x = random_weight("Q4_K", 16, 256), random(513, 256)
    together = kernels.packed_linear(x, weight, None)
    assert torch.equal(kernels.packed_linear(x[510:], weight, None), together[510:])


@pytest.mark.parametrize("name", ["int4 order", "int8 zeros", "fp8 static", "Q6_K"])
def test_rows_of_groups(kernels: NativeKernels, name: str) -> None:
    weight, x = random_weight(name, 20, 256, 4), random(50, 256)
    ends = torch.tensor([3, 3, 45, 50], dtype=torch.int32)
    output = kernels.grouped_packed_linear(x, weight, ends)
    for group, begin, end in ((0, 0, 3), (2, 3, 45), (3, 45, 50)):
        alone = kernels.packed_linear(x[begin:end], expert_of(weight, group), None)
        assert torch.equal(output[begin:end], alone)


def test_what_is_no_number_stays_none(kernels: NativeKernels) -> None:
    weight, x = random_weight("int4", 20, 256), random(3, 256)
    x[0, 7], x[1, 7] = torch.nan, torch.inf
    output = kernels.packed_linear(x, weight, None)
    assert not output[:2].isfinite().any()
    assert output[2].isfinite().all()
    zero = kernels.packed_linear(torch.zeros_like(x), weight, None)
    assert torch.equal(zero, torch.zeros_like(zero))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_the_library_does_not_take_is_left_to_torch(
    kernels: NativeKernels, dtype: torch.dtype
) -> None:
    weight, x = random_weight("Q8_0", 5, 64), random(3, 64).to(dtype)
    assert torch.equal(kernels.packed_linear(x, weight, None), PLAIN.packed_linear(x, weight, None))
    odd = IntegerWeight(torch.ones(5, 40, dtype=torch.int8), torch.ones(5, 1))
    assert native_weight(odd) is None
    assert torch.allclose(
        kernels.packed_linear(torch.ones(2, 40), odd, None), torch.full((2, 5), 40.0)
    )


class TestOption:
    def test_nodes_that_round_inputs_share_no_pages_with_those_that_do_not(
        self, tmp_path: Path
    ) -> None:
        compiled()
        save(tmp_path, checkpoint())
        fingerprints = set()
        for rounds in (False, True):
            options = EngineOptions("float32", cpu_int8_activations=rounds)
            runner = load_model_runner(tmp_path, options, lambda _: 3, CPU)
            kernels = runner.model.layers[0].attention.kernels
            assert isinstance(kernels, NativeKernels)
            assert kernels.rounds_inputs == rounds
            fingerprints.add(runner.fingerprint)
        assert len(fingerprints) == 2

    def test_another_dtype_than_that_of_the_kernels_ends_the_start(self, tmp_path: Path) -> None:
        save(tmp_path, checkpoint())
        options = EngineOptions("bfloat16", cpu_int8_activations=True)
        with pytest.raises(OptionUnavailable, match="needs a CPU, --dtype float32 and a C comp"):
            load_model_runner(tmp_path, options, lambda _: 3, CPU)

    @pytest.mark.parametrize("rival", ["no_native_kernels", "deterministic"])
    def test_flags_that_leave_the_kernels_out_are_refused(self, rival: str) -> None:
        with pytest.raises(ConfigError, match="drop one of the two flags"):
            EngineOptions(cpu_int8_activations=True, **{rival: True})  # type: ignore[arg-type]


AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mno-avx512f")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c")


@pytest.fixture(
    params=[
        pytest.param(AVX2, id="AVX2"),
        pytest.param((), id="portable", marks=pytest.mark.verify),
        pytest.param((*AVX512, "-mno-avx512vnni"), id="AVX-512", marks=pytest.mark.verify),
    ]
)
def fewer_instructions(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> CDLL:
    """The library for a lesser CPU than this one."""
    compiled()
    wanted = {flag.removeprefix("-m") for flag in request.param if not flag.startswith("-mno-")}
    if wanted and (platform.machine() != "x86_64" or not wanted <= instructions_of_this_cpu()):
        pytest.skip("needs a CPU with these instructions")
    target = tmp_path_factory.mktemp("native") / "kernels.so"
    build.compile_library(target, [(*request.param, "-O1")])
    return build.opened(target)


def instructions_of_this_cpu() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {word for line in lines if line.startswith("flags") for word in line.split()}


def test_fewer_instructions_give_the_same_numbers(fewer_instructions: CDLL) -> None:
    exact = NativeKernels(fewer_instructions)
    rounding = NativeKernels(fewer_instructions, rounds_inputs=True)
    for name in EVERY:
        for num_rows in (1, 2, 11):
            check(exact, name, num_rows, 37, 768)
            if name in ROUNDED:
                check(rounding, name, num_rows, 37, 768)
