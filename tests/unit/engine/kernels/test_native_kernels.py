"""Native kernels against the same in torch; how their library is made, and what happens without."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.attention.native_attention import NativeAttention
from engine.batches.batch import Batch
from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.cache.kv_cache import KVCache
from engine.kernels.base import HeadNorms, HeadShape, TorchKernels
from engine.kernels.native import build
from engine.kernels.native.build import CannotCompile, load_library, native_library
from engine.kernels.native_kernels import FAST, MOST_ROWS, WEIGHT_DTYPES, NativeKernels
from engine.model.rope import rotation
from engine.model.rope_config import RopeConfig
from engine.options import EngineOptions
from protocol.layout import KVLayout
from tests.support.engine.attention import SINGLES, Case, form_of
from tests.support.engine.driving import GREEDY
from tests.support.engine.native import compiled, little_source
from tests.support.models.checkpoints import checkpoint, save

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[4]
PLAIN = TorchKernels()
ROWS = [1, 2, 3, 4, 7, 8, MOST_ROWS, MOST_ROWS + 8]
SIZES = [(1, 1), (5, 3), (12, 16), (33, 41), (64, 100), (130, 72), (50, 600)]
"""Outputs and inputs, of which few are whole vectors, and some more than a block."""


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def kernels(request: pytest.FixtureRequest) -> Iterator[NativeKernels]:
    torch.set_num_threads(request.param)
    yield NativeKernels(compiled())
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CDLL]:
    """Returns what `linear.c` becomes on CPUs that do less than this one."""
    compiled()
    found, directory = {}, tmp_path_factory.mktemp("libraries")
    for name, flags in (("AVX2", ["-mavx2", "-mfma", "-mf16c"]), ("portable", [])):
        target = directory / f"{name}.so"
        command = ["-O1", *flags, str(build.FOLDER / "linear.c"), "-o", str(target)]
        has_them = name == "portable" or torch.backends.cpu.get_cpu_capability() in FAST
        if has_them and subprocess.run([compiler(), *build.FLAGS, *command]).returncode == 0:
            found[name] = CDLL(str(target))
            found[name].linear.argtypes = build.ARGUMENTS["linear"]
    return found


def compiler() -> str:
    return next(command[0] for command in build._compilers())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def special_weights(num_out: int, num_in: int, dtype: torch.dtype) -> Tensor:
    """Returns random weights, among them numbers that are widened in ways of their own."""
    weight = random(num_out, num_in, seed=1).to(dtype)
    weight[0, 0] = torch.finfo(dtype).smallest_normal / 4
    weight[-1, -1] = torch.inf
    weight[num_out // 2, num_in // 2] = -0.0
    if num_out > 2:
        weight[1, -1] = torch.nan
    return weight


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=2e-5, equal_nan=True)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(("num_out", "num_in"), SIZES)
def test_linear(kernels: NativeKernels, num_rows: int, num_out: int, num_in: int) -> None:
    x, weight, bias = random(num_rows, num_in), random(num_out, num_in, seed=1), random(num_out)
    expected = PLAIN.linear(x.double(), weight.double(), None).float()
    assert_same(kernels.linear(x, weight, None), expected)
    assert_same(kernels.linear(x, weight, bias), expected + bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_out", "num_in"), SIZES)
def test_a_weight_of_16_bits_counts_for_the_bit_as_if_widened(
    kernels: NativeKernels, num_out: int, num_in: int, dtype: torch.dtype
) -> None:
    weight, bias = special_weights(num_out, num_in, dtype), random(num_out)
    for num_rows in ROWS:
        x = random(num_rows, num_in)
        result = kernels.linear(x, weight, bias)
        widened = kernels.linear(x, weight.float(), bias)
        torch.testing.assert_close(result, widened, atol=0.0, rtol=0.0, equal_nan=True)
        assert_same(result, PLAIN.linear(x.double(), weight.double(), bias.double()).float())


def test_rows_that_do_not_lie_side_by_side(kernels: NativeKernels) -> None:
    x, weight = random(40, 5).t(), random(12, 40, seed=1)
    assert_same(kernels.linear(x, weight, None), PLAIN.linear(x, weight, None))
    columns = random(5, 80)[:, ::2]
    assert_same(kernels.linear(columns, weight, None), PLAIN.linear(columns, weight, None))
    weight = random(40, 12).t()
    assert_same(kernels.linear(x, weight, None), PLAIN.linear(x, weight, None))


@pytest.mark.parametrize("name", ["AVX2", "portable"])
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_products_of_other_cpus(libraries: dict[str, CDLL], name: str, dtype: torch.dtype) -> None:
    if name not in libraries:
        pytest.skip("not for this kind of CPU")
    kernels, x = NativeKernels(libraries[name]), random(MOST_ROWS + 8, 300)
    weight, bias = (random(50, 300, seed=1) / 10).to(dtype), random(50)
    together = kernels.linear(x, weight, bias)
    assert_same(together, PLAIN.linear(x.double(), weight.double(), bias.double()).float())
    assert torch.equal(together, kernels.linear(x, weight.float(), bias))
    for num_rows in range(1, MOST_ROWS):
        assert torch.equal(kernels.linear(x[:num_rows], weight, bias), together[:num_rows])


@pytest.mark.parametrize(("num_out", "num_in"), SIZES)
def test_bits_of_a_row_do_not_depend_on_the_others(num_out: int, num_in: int) -> None:
    kernels = NativeKernels(compiled())
    x, weight = random(MOST_ROWS, num_in), random(num_out, num_in, seed=1)
    together = kernels.linear(x, weight, None)
    for num_rows in range(1, MOST_ROWS):
        assert torch.equal(kernels.linear(x[-num_rows:], weight, None), together[-num_rows:])


def test_bits_do_not_depend_on_threads() -> None:
    kernels, x, weight = NativeKernels(compiled()), random(7, 41), random(50, 41, seed=1)
    alone = kernels.linear(x, weight, None)
    torch.set_num_threads(2)
    try:
        assert torch.equal(kernels.linear(x, weight, None), alone)
    finally:
        torch.set_num_threads(1)


def test_rows_of_groups(kernels: NativeKernels) -> None:
    x, weight = random(50, 40), random(4, 12, 40, seed=1)
    ends = torch.tensor([3, 3, 45, 50], dtype=torch.int32)
    assert_same(kernels.grouped_linear(x, weight, ends), PLAIN.grouped_linear(x, weight, ends))


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("size", [1, 7, 8, 41, 64])
def test_norms(kernels: NativeKernels, num_rows: int, size: int) -> None:
    x, residual = random(num_rows, size), random(num_rows, size, seed=1)
    weight = random(size, seed=2)
    assert_same(kernels.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    expected = PLAIN.add_rms_norm(x, residual.clone(), weight, 1e-5)
    actual = kernels.add_rms_norm(x, residual, weight, 1e-5)
    assert_same(actual[0], expected[0])
    assert_same(actual[1], expected[1])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("inner", [1, 8, 41])
def test_activations(kernels: NativeKernels, activation: str, inner: int) -> None:
    gate_up = random(9, 2 * inner) * 10
    gate_up[0, :inner], gate_up[1, :inner], gate_up[2, 0] = 200.0, -200.0, torch.nan
    assert_same(
        kernels.activate_and_mul(gate_up, activation),  # type: ignore[arg-type]
        PLAIN.activate_and_mul(gate_up, activation),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (20, 12), (6, 2)])
def test_heads(kernels: NativeKernels, has_norms: bool, head_dim: int, rotary_dim: int) -> None:
    shape, page_size, num_tokens = HeadShape(4, 2, head_dim), 4, 5
    layout = KVLayout(page_size, 2, shape.num_kv_heads, head_dim, "float32")
    slots = torch.tensor([0, 3, 17, 10, 9])  # each in the keys' half of a page
    norms = HeadNorms(random(head_dim), random(head_dim, seed=1), 1e-6) if has_norms else None
    rope = rotation(RopeConfig(rotary_dim, 10_000.0), torch.arange(3, 8), torch.float32)
    qkv = random(num_tokens, 8 * head_dim, seed=2)
    queries, pools = [], []
    for each in (kernels, PLAIN):
        cache = KVCache(layout, 3, CPU)
        queries.append(each.heads(qkv.clone(), shape, norms, rope, 1, cache, slots))
        pools.append(cache.pool)
    assert queries[0].shape == queries[1].shape
    assert_same(*queries)
    assert_same(*pools)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_left_to_torch(kernels: NativeKernels, dtype: torch.dtype) -> None:
    x, weight = random(3, 16).to(dtype), random(8, 16).to(dtype)
    assert torch.equal(kernels.linear(x, weight, None), PLAIN.linear(x, weight, None))
    assert torch.equal(kernels.rms_norm(x, weight[0], 1e-5), PLAIN.rms_norm(x, weight[0], 1e-5))
    assert torch.equal(kernels.activate_and_mul(x, "silu"), PLAIN.activate_and_mul(x, "silu"))


class TestAttention:
    def test_bits_do_not_depend_on_company_or_threads(self) -> None:
        case, attention = Case(SINGLES), NativeAttention(compiled())

        def attend() -> Tensor:
            return attention.forward(case.query, 1, case.cache, case.batch, form_of(None))

        together = attend()
        torch.set_num_threads(2)
        try:
            assert torch.equal(attend(), together)
        finally:
            torch.set_num_threads(1)
        batch = Batch.build(case.slices[-1:], case.cache.layout.page_size, CPU)
        output = attention.forward(case.query[-1:], 1, case.cache, batch, form_of(None))
        assert torch.equal(output, together[-1:])

    def test_many_threads_share_one_sequence(self) -> None:
        torch.set_num_threads(2)
        try:
            Case([(300, 1)], page_size=16, kv_heads=3).check(
                NativeAttention(compiled()), form_of(200)
            )
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize(
    "change", [{}, {"no_native_kernels": True}, {"dtype": "bfloat16"}, {"deterministic": True}]
)
def test_a_model_uses_them_in_float32_unless_told_otherwise(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    compiled()
    save(tmp_path, checkpoint())
    options = EngineOptions(**{"dtype": "float32"} | change)
    runner = load_model_runner(tmp_path, options, lambda _: 3, CPU)
    kernels = runner.model.layers[0].attention.kernels
    assert isinstance(kernels, NativeKernels) == (not change)
    assert (runner.attention.name == "native") == (not change)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_16_bits_lies_in_them_and_is_computed_as_in_float32(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    compiled()
    rounded = {name: tensor.to(dtype) for name, tensor in checkpoint().items()}
    wide = {name: tensor.float() for name, tensor in rounded.items()}
    pools = []
    for name, tensors, expected in (("16", rounded, dtype), ("32", wide, torch.float32)):
        (tmp_path / name).mkdir()
        save(tmp_path / name, tensors)
        options = EngineOptions("float32", page_size=4)
        runner = load_model_runner(tmp_path / name, options, lambda _: 12, CPU)
        for parameter in runner.model.parameters():
            assert parameter.dtype == (expected if parameter.dim() > 1 else torch.float32)
        prompt, pages = [3, 1, 4, 1, 5, 2] * 7, np.arange(12, dtype=np.int32)
        runner.run([Slice(prompt, 0, pages, GREEDY)])
        runner.run([Slice([5], len(prompt), pages, GREEDY)])
        pools.append(runner.kv_cache.pool)
    assert pools[0].any() and torch.equal(*pools)


def test_weights_of_several_dtypes_are_widened(tmp_path: Path) -> None:
    compiled()
    tensors = checkpoint()
    tensors["lm_head.weight"] = tensors["lm_head.weight"].bfloat16()
    save(tmp_path, tensors)
    runner = load_model_runner(tmp_path, EngineOptions("float32"), lambda _: 3, CPU)
    assert {parameter.dtype for parameter in runner.model.parameters()} == {torch.float32}


class TestLibrary:
    def test_processes_that_compile_at_once_all_have_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiled()
        little_source(tmp_path / "source", monkeypatch)
        program = "import sys, pathlib; from engine.kernels.native import build; "
        program += "build.FOLDER = pathlib.Path(sys.argv[1]); build.ARGUMENTS = {'linear': []}; "
        program += "build.load_library(pathlib.Path(sys.argv[2])).linear"
        places = [str(tmp_path / "source"), str(tmp_path / "cache")]
        command = [sys.executable, "-c", program, *places]
        processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
        assert [process.wait(60) for process in processes] == [0, 0, 0]
        left = os.listdir(tmp_path / "cache")
        assert len(left) == 1, "one library, nothing left of its making"

    def test_what_is_there_is_not_compiled_again_unless_the_cpu_is_another(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiled()
        little_source(tmp_path / "source", monkeypatch)
        load_library(tmp_path)
        without_compilers(monkeypatch)
        load_library(tmp_path)
        monkeypatch.setattr(build, "_cpu", lambda: ("another CPU",))
        with pytest.raises(CannotCompile):
            load_library(tmp_path)

    def test_without_a_compiler_a_line_says_what_helps(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        fresh: None,
    ) -> None:
        without_compilers(monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with caplog.at_level(logging.WARNING):
            assert native_library() is None
            assert native_library() is None
        (line,) = caplog.messages
        assert "decoding on this CPU will be slower" in line
        assert "install gcc" in line
        assert not any(path.is_file() for path in tmp_path.rglob("*"))

    def test_a_compiler_that_fails_is_quoted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without_compilers(monkeypatch)
        broken = tmp_path / "broken"
        broken.write_text("#!/bin/sh\necho 'out of luck' >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("CC", str(broken))
        with pytest.raises(CannotCompile, match=r"out of luck.*install gcc, or name another"):
            load_library(tmp_path / "cache")

    def test_a_directory_that_cannot_be_written_is_no_end(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        fresh: None,
    ) -> None:
        compiled()
        native_library.cache_clear()
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert native_library() is None
        assert "--compile-cache" in caplog.text


@pytest.fixture
def fresh() -> Iterator[None]:
    """As in a new process."""
    native_library.cache_clear()
    yield
    native_library.cache_clear()


def without_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
