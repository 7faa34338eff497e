"""Products in half precision on a CPU: whatever a node is asked, their shapes are few, as a library
compiles a kernel for each and keeps it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.attention.torch_prompts import KEY_STEP
from engine.batches.sequence import Slice
from engine.build import EngineOptions, load_model_runner
from engine.kernels.deterministic_kernels import CPU_SIZES
from engine.kernels.few_sizes_kernels import MOST_NATIVE_ROWS, SIZES, FewSizesKernels
from engine.kernels.native_kernels import NativeKernels
from infra.models import EMBEDDED
from tests.support.engine.driving import CPU, GREEDY, PAGE_SIZE, Sequences, prompt_of
from tests.support.engine.native import compiled

HALF = (torch.bfloat16, torch.float16)
ROWS = {"mm": 0, "linear": 0, "addmm": 1}
"""The argument whose rows are tokens."""
KEYS = {"scaled_dot_product_attention": 1, "_scaled_dot_product_flash_attention_for_cpu": 1}
"""The argument that holds the keys [n, kv_heads, keys, head_dim]."""


class HalfPrecisionProducts(TorchDispatchMode):
    """Notes how many rows and keys the products of numbers in half precision have, and fails at an
    operation whose shapes it does not know how to read."""

    def __init__(self) -> None:
        super().__init__()
        self.num_rows: set[int] = set()
        self.num_keys: set[int] = set()

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = operation.overloadpacket.__name__
        is_half = any(isinstance(arg, Tensor) and arg.dtype in HALF for arg in args)
        if is_half and name in ROWS:
            self.num_rows.add(len(args[ROWS[name]]))
        elif is_half and name in KEYS:
            self.num_keys.add(args[KEYS[name]].shape[-2])
        elif is_half:
            assert not any(word in name for word in ("mm", "matmul", "attention", "conv")), name
        return operation(*args, **(kwargs or {}))


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(torch.bfloat16)


def test_groups_of_rows_have_few_sizes_too() -> None:
    kernels, weight = FewSizesKernels(), random_tensor(3, 24, 32, seed=1)
    with torch.inference_mode(), HalfPrecisionProducts() as products:
        for first, second in ((0, 77), (5, 130), (601, 700)):
            x, ends = random_tensor(900, 32), torch.tensor([first, second, 900], dtype=torch.int32)
            output = kernels.grouped_linear(x, weight, ends)
            expected = torch.cat(
                [
                    F.linear(rows.float(), its.float())
                    for rows, its in zip(x.tensor_split([first, second]), weight, strict=True)
                ]
            )
            torch.testing.assert_close(output.float(), expected, atol=0.05, rtol=0.02)
    assert products.num_rows and products.num_rows <= set(SIZES)


@pytest.mark.parametrize("is_deterministic", [False, True], ids=["plain", "deterministic"])
def test_steps_of_a_model_have_few_shapes(is_deterministic: bool) -> None:
    """Prompts of any length, behind a cached prefix, alone and in groups, and any number of single
    tokens."""
    torch.set_num_threads(1)
    chance = random.Random(1)
    options = EngineOptions(
        "bfloat16", PAGE_SIZE, deterministic=is_deterministic, no_native_kernels=True
    )
    runner = load_model_runner(EMBEDDED, options, lambda _: 400, CPU)

    def steps(num_steps: int, num_slices: Callable[[], int], most: int) -> None:
        for _ in range(num_steps):
            sequences, slices = Sequences(runner), []
            for _ in range(num_slices()):
                tokens = prompt_of(chance.randint(1, most), 2000)
                start = chance.randrange(100)
                pages = sequences.pages(start + len(tokens))
                slices.append(Slice(tokens, start, pages, GREEDY))
            runner.run(slices)

    with HalfPrecisionProducts() as products:
        steps(12, lambda: 1, most=600)
        steps(4, lambda: chance.randint(2, 8), most=200)
        steps(6, lambda: chance.randint(1, 40), most=1)
    if is_deterministic:
        assert len(products.num_rows) > 2 and products.num_rows <= set(CPU_SIZES)
        assert not products.num_keys, "its attention is in float32"
    else:
        assert len(products.num_rows) > 10 and products.num_rows <= set(SIZES)
        assert len(products.num_keys) > 5
        assert all(num_keys % KEY_STEP == 0 for num_keys in products.num_keys)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("num_rows", [1, MOST_NATIVE_ROWS, 50])
def test_native_kernels_round_their_result_alone(dtype: torch.dtype, num_rows: int) -> None:
    kernels = FewSizesKernels(NativeKernels(compiled()), has_instructions=False)
    x, weight, bias = (
        random_tensor(*shape).to(dtype) for shape in ((num_rows, 40), (24, 40), (24,))
    )
    exact = F.linear(x.double(), weight.double(), bias.double())
    result = kernels.linear(x, weight, bias)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), exact, atol=1e-5, rtol=torch.finfo(dtype).eps)


def test_many_rows_are_left_to_the_instructions_for_them() -> None:
    kernels, weight = FewSizesKernels(NativeKernels(compiled())), random_tensor(24, 32)
    with torch.inference_mode(), HalfPrecisionProducts() as products:
        kernels.linear(random_tensor(MOST_NATIVE_ROWS, 32), weight, None)
        assert not products.num_rows
        kernels.linear(random_tensor(20, 32), weight, None)
    assert products.num_rows == {24}


def test_float32_is_left_alone() -> None:
    """What its library keeps does not depend on shapes, and padding would cost time."""
    options = EngineOptions("float32", PAGE_SIZE, no_native_kernels=True)
    runner = load_model_runner(EMBEDDED, options, lambda _: 10, CPU)
    kernels = runner.model.head.kernels
    assert not isinstance(kernels, FewSizesKernels)
