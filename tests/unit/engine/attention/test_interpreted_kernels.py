"""The Triton kernels of attention on a CPU, by Triton's interpreter: small shapes, the same code.

It shows what a kernel computes, not that it compiles nor how its threads meet; `tests/gpu` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
import torch

from engine.attention.backend import AttentionForm
from engine.attention.token_pieces import token_pieces
from engine.batches.batch import Batch
from protocol.layout import Scales
from tests.support.engine.attention import CHUNKS, PROMPTS, SINGLES, Case, planned

if TYPE_CHECKING:
    from engine.attention.triton_attention import TritonAttention

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which tests/gpu uses"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]
FEW, MANY = 3, 40
"""Numbers of processors: with few, contexts stay whole; with many, they are cut."""
UNEQUAL = [(700, 1), (0, 1), (2, 1), (130, 1), (700, 1), (64, 1)]
BATCHES = {
    "prompts": PROMPTS,
    "chunks": CHUNKS,
    "singles": SINGLES,
    "one": [(300, 1)],
    "unequal": UNEQUAL,
    "mixed": [*SINGLES, *CHUNKS, *PROMPTS],
}
FORMS = {
    "plain": AttentionForm(0.125),
    "window": AttentionForm(0.125, window=7),
    "long-window": AttentionForm(0.2, window=200),
    "softcap": AttentionForm(0.3, softcap=2.0),
}


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    """Triton decides when a kernel is defined, which is when its file is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    yield
    del os.environ["TRITON_INTERPRET"]


def triton(num_processors: int) -> TritonAttention:
    from engine.attention.triton_attention import TritonAttention

    return TritonAttention(num_processors)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("num_processors", [FEW, MANY])
def test_every_batch_and_form(num_processors: int, batch: str, form: str) -> None:
    Case(BATCHES[batch], 16, head_dim=32).check(triton(num_processors), FORMS[form])


@pytest.mark.parametrize(("kv_heads", "group", "head_dim"), [(1, 20, 80), (8, 4, 16), (3, 3, 256)])
@pytest.mark.parametrize("page_size", [1, 128])
def test_shapes(kv_heads: int, group: int, head_dim: int, page_size: int) -> None:
    parts = [(0, 9), (170, 1), (50, 33), (2, 1)]
    case = Case(parts, page_size, kv_heads, group, head_dim=head_dim)
    case.check(triton(MANY), AttentionForm(head_dim**-0.5))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", ["one", "mixed"])
@pytest.mark.parametrize("scales", ["token", "static"])
def test_pages_of_fp8(scales: Scales, batch: str, form: str) -> None:
    torch.manual_seed(5)
    case = Case(BATCHES[batch], 16, head_dim=32, scales=scales)
    case.check(triton(MANY), FORMS[form])


@pytest.mark.parametrize("scales", ["token", "static"])
@pytest.mark.parametrize(("page_size", "kv_heads", "head_dim"), [(1, 3, 80), (128, 1, 16)])
def test_shapes_of_fp8(scales: Scales, page_size: int, kv_heads: int, head_dim: int) -> None:
    torch.manual_seed(5)
    parts = [(0, 9), (170, 1), (50, 33), (2, 1)]
    case = Case(parts, page_size, kv_heads, 3, head_dim=head_dim, scales=scales)
    case.check(triton(MANY), AttentionForm(head_dim**-0.5))


def test_fp8_in_half_precision() -> None:
    """The interpreter multiplies no bfloat16."""
    case = Case(BATCHES["mixed"], 16, head_dim=32, scales="token", dtype=torch.float16)
    case.check(triton(MANY), FORMS["plain"])


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("num", [1, 5, 70, 128])
def test_the_device_plans_the_pieces_that_the_pure_function_says(
    num: int, window: int | None
) -> None:
    from engine.attention.triton_singles import plan_pieces

    chance = torch.Generator().manual_seed(num)
    contexts = torch.randint(1, 2000, (num,), generator=chance).tolist()
    slices = Case([(context - 1, 1) for context in contexts], 64, head_dim=1).slices
    part = Batch.build(slices, 64, torch.device("cpu")).singles
    assert part is not None
    for workers in (1, 33, 200):
        plan = plan_pieces(part, kv_heads=2, window=window, keys=32, workers=workers)
        expected = token_pieces(contexts, window, 32, workers)
        assert plan.num_pieces[0] == len(expected) <= len(plan.pieces)
        assert plan.pieces[: len(expected), :6].tolist() == planned(expected, contexts, window, 32)
        assert plan.arrivals.tolist() == [0] * (2 * num)


def test_equal_sequences_give_the_same_bits_and_layers_can_use_one_plan_again() -> None:
    case = Case([(500, 1), (30, 1), (500, 1)], 16, head_dim=16)
    case.slices[2] = case.slices[0]
    case.batch = Batch.build(case.slices, 16, torch.device("cpu"))
    case.query[2] = case.query[0]
    backend = triton(MANY)
    first, again = (case.output(backend, FORMS["plain"]) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(first[0], first[2])
