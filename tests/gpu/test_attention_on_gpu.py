"""The contract of attention back ends on CUDA, with the cases of the suite for CPUs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from engine.attention import flash_attention
from engine.attention.attention_backends import make_attention
from engine.attention.backend import AttentionBackend, AttentionForm
from engine.attention.deterministic_attention import DeterministicAttention
from engine.attention.token_pieces import token_pieces
from engine.attention.torch_attention import TorchAttention
from engine.batches.batch import Batch
from protocol.layout import KVLayout
from tests.support.engine.attention import CHUNKS, PROMPTS, SINGLES, Case, planned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
HALF_LAYOUT = KVLayout(16, 2, 2, 64, "bfloat16")
UNEQUAL = [(299, 1)] * 16 + [(11_999, 1)] + [(299, 1)] * 16
EXTREMES = [(3000, 1), (0, 1), (2, 1), (900, 1), (0, 300), (500, 140), (0, 2), (1800, 2)]
BATCHES = {
    "prompts": PROMPTS,
    "chunks": CHUNKS,
    "singles": SINGLES,
    "one": [(700, 1)],
    "mixed": [*SINGLES, *CHUNKS, *PROMPTS],
    "extremes": EXTREMES,
    "unequal": UNEQUAL,
}
FORMS = {
    "plain": AttentionForm(0.125),
    "window": AttentionForm(0.125, window=7),
    "long-window": AttentionForm(0.2, window=700),
    "softcap": AttentionForm(0.3, softcap=2.0),
}


def triton() -> AttentionBackend:
    return make_attention("triton", False, HALF_LAYOUT, CUDA)


def library(name: str) -> Callable[[], AttentionBackend]:
    def make() -> AttentionBackend:
        """Skips where the library is not installed."""
        from engine.attention.triton_attention import TritonAttention

        kernel = (
            flash_attention.varlen_kernel()
            if name == "varlen"
            else flash_attention.flash_attention_kernel(HALF_LAYOUT.page_size, CUDA)
        )
        if kernel is None:
            pytest.skip(f"{name} is not installed")
        return flash_attention.FlashAttention(*kernel, TritonAttention.on(CUDA))

    return make


EXACT: dict[str, Callable[[], AttentionBackend]] = {
    "torch": TorchAttention,
    "deterministic": DeterministicAttention,
    "triton": triton,
}
HALF = EXACT | {"flash": library("flash"), "varlen": library("varlen")}


@pytest.fixture(autouse=True)
def full_precision() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("backend", EXACT)
def test_float32(backend: str, batch: str, form: str) -> None:
    case = Case(BATCHES[batch], 16, head_dim=64, device=CUDA)
    case.check(EXACT[backend](), FORMS[form])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("backend", HALF)
def test_half_precision(
    backend: str, batch: str, form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash_attention, "FEW_ROWS", 0)  # short prompts, too
    if backend == "varlen" and form == "softcap":
        pytest.skip("it has no softcap")
    case = Case(BATCHES[batch], 16, head_dim=64, device=CUDA, dtype=dtype)
    case.check(HALF[backend](), FORMS[form])


@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (1, 20), (8, 4), (3, 3)])
@pytest.mark.parametrize("head_dim", [16, 80, 96, 128, 256])
@pytest.mark.parametrize("page_size", [1, 16, 128])
def test_shapes(kv_heads: int, group: int, head_dim: int, page_size: int) -> None:
    parts = [(0, 9), (170, 1), (50, 33), (2, 1)]
    case = Case(parts, page_size, kv_heads, group, head_dim=head_dim, device=CUDA)
    case.check(triton(), AttentionForm(head_dim**-0.5))


@pytest.mark.parametrize("backend", EXACT)
def test_a_poisoned_sequence_poisons_no_other(backend: str) -> None:
    case = Case([(9, 1), (300, 1), (0, 6), (2, 1)], 16, device=CUDA)
    clean = case.reference(FORMS["plain"])
    case.cache.pool[1][list(case.slices[1].pages)] = math.nan
    output = case.output(EXACT[backend](), FORMS["plain"])
    others = [0, *range(2, 9)]
    torch.testing.assert_close(output[others].double(), clean[others], atol=2e-6, rtol=1e-5)
    assert output[1].isnan().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("contexts", [[1, 1, 1, 1], [2900, 1, 60, 700], [1, 2, 2900, 2900]])
def test_a_graph_serves_contexts_of_other_lengths(contexts: list[int], form: str) -> None:
    case = Case([(n - 1, 1) for n in contexts], 16, head_dim=64, device=CUDA)
    backend, lengths = triton(), case.batch.singles.context_lengths
    query = case.query[case.rows].to(CUDA)
    warm = Batch.build(case.slices, 16, CUDA)  # compiles; its plan is not that of the graph
    backend.forward(query, 1, case.cache, warm, FORMS[form])
    wanted = lengths.clone()
    lengths.fill_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = backend.forward(query, 1, case.cache, case.batch, FORMS[form])
        output = backend.forward(query, 1, case.cache, case.batch, FORMS[form])
    lengths.copy_(wanted)
    for _ in range(3):
        output.fill_(math.nan)
        graph.replay()
        assert torch.equal(first, output), "the next layer uses the same plan"
        expected = case.reference(FORMS[form])
        torch.testing.assert_close(output.cpu()[case.back].double(), expected, atol=8e-6, rtol=1e-5)


def test_the_device_plans_the_pieces_that_the_pure_function_says() -> None:
    from engine.attention.triton_singles import plan_pieces

    contexts = [300] * 200 + [12_000, 1, 64, 65] + [2080] * 50
    case = Case([(n - 1, 1) for n in contexts], 64, kv_heads=1, group=1, head_dim=1)
    part = Batch.build(case.slices, 64, CUDA).singles
    for window, workers in itertools.product((None, 100), (1, 33, 264)):
        plan = plan_pieces(part, kv_heads=8, window=window, keys=64, workers=workers)
        expected = token_pieces(contexts, window, 64, workers)
        assert plan.num_pieces[0] == len(expected)
        assert plan.pieces[: len(expected), :6].tolist() == planned(expected, contexts, window, 64)
        assert not plan.arrivals.any()


def test_pieces_are_joined_in_the_same_order_every_time() -> None:
    case = Case(UNEQUAL, 16, 8, 4, head_dim=128, device=CUDA, dtype=torch.bfloat16)
    backend = triton()
    outputs = [case.output(backend, FORMS["plain"]) for _ in range(20)]
    assert all(torch.equal(outputs[0], output) for output in outputs[1:])
