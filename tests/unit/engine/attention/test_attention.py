"""The contract of attention back ends, against a naive reference in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from engine.attention.backend import AttentionBackend, AttentionForm
from engine.batches.batch import Batch
from engine.batches.sequence import Slice
from engine.cache.kv_cache import KVCache, num_pages_that_fit
from protocol.layout import KVLayout
from tests.support.engine.attention import CHUNKS, PROMPTS, SINGLES, Case, form_of
from tests.support.engine.attention_backends import BACKENDS
from tests.support.engine.driving import CPU


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=BACKENDS)
def make_backend(request: pytest.FixtureRequest) -> Callable[[], AttentionBackend]:
    return BACKENDS[request.param]


@pytest.mark.parametrize("window", [None, 1, 3, 8, 1000])
@pytest.mark.parametrize(
    "parts",
    [[PROMPTS[3]], [CHUNKS[3]], PROMPTS, CHUNKS, SINGLES, [*SINGLES, *CHUNKS, *PROMPTS]],
    ids=["prompt", "chunk", "prompts", "chunks", "singles", "mixed"],
)
def test_equals_the_reference(
    make_backend: Callable[[], AttentionBackend],
    parts: list[tuple[int, int]],
    window: int | None,
) -> None:
    Case(parts).check(make_backend(), form_of(window))


@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (1, 6), (4, 1), (2, 4)])
@pytest.mark.parametrize("page_size", [1, 16])
def test_heads_and_page_sizes(
    make_backend: Callable[[], AttentionBackend],
    kv_heads: int,
    group: int,
    page_size: int,
) -> None:
    case = Case([(0, 9), (17, 1), (5, 3), (2, 1)], page_size, kv_heads, group)
    case.check(make_backend(), form_of(None))


def test_a_poisoned_sequence_poisons_no_other(
    make_backend: Callable[[], AttentionBackend],
) -> None:
    """A neighbour whose KV overflowed shares the batch, and its pages were page 0 and stale."""
    case = Case([(9, 1), (30, 1), (0, 6), (2, 1)])
    clean = case.reference(form_of(None))
    case.cache.pool[1][list(case.slices[1].pages)] = math.nan
    output = case.output(make_backend(), form_of(None))
    others = [0, *range(2, 9)]
    torch.testing.assert_close(output[others].double(), clean[others], atol=2e-6, rtol=1e-5)
    assert output[1].isnan().all()


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 700])
def test_extremes_in_one_batch(
    make_backend: Callable[[], AttentionBackend], window: int | None, softcap: float | None
) -> None:
    """Beside 3,000 tokens of context: one token alone, and prompts of more than a tile."""
    parts = [(3000, 1), (0, 1), (2, 1), (900, 1), (0, 300), (500, 140), (0, 2), (0, 3), (1800, 2)]
    Case(parts, 16).check(make_backend(), form_of(window, softcap))


@pytest.mark.parametrize(("kv_heads", "group", "head_dim"), [(8, 4, 128), (1, 20, 64)])
def test_heads_of_real_models(
    make_backend: Callable[[], AttentionBackend], kv_heads: int, group: int, head_dim: int
) -> None:
    """Contexts of several blocks, whatever their bytes."""
    case = Case([(600, 1), (70, 1), (290, 20)], 16, kv_heads, group, head_dim=head_dim)
    case.check(make_backend(), AttentionForm(head_dim**-0.5))


def test_layers_of_one_batch_have_windows_of_their_own(
    make_backend: Callable[[], AttentionBackend],
) -> None:
    case, backend = Case([(0, 40), (33, 1), (7, 9)]), make_backend()
    for window in (None, 5, None, 12, 5):
        case.check(backend, form_of(window))


def test_a_plan_is_forgotten_with_its_batch(
    make_backend: Callable[[], AttentionBackend],
) -> None:
    backend = make_backend()
    for seed in range(3):
        Case([(0, 40 + seed), (33, 1)], seed=seed).check(backend, form_of(None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 3, 150])
def test_half_precision(
    make_backend: Callable[[], AttentionBackend],
    dtype: torch.dtype,
    softcap: float | None,
    window: int | None,
) -> None:
    """Short prompts that go together, and one of several tiles."""
    case = Case([(0, 20), (33, 1), (4, 7), (5, 8), (70, 301)], dtype=dtype)
    case.check(make_backend(), form_of(window, softcap))


class TestKVCache:
    LAYOUT = KVLayout(page_size=4, num_layers=3, num_kv_heads=2, head_dim=8, dtype="float32")

    def test_what_is_written_lies_where_the_layout_says(self) -> None:
        cache = KVCache(self.LAYOUT, 6, CPU)
        batch = Batch.build([Slice([1, 2, 3], 3, [5, 2], None)], 4, CPU)
        key, value = torch.randn(2, 3, 2, 8)
        cache.write(1, key, value, batch.write_slots)
        for token, (page, offset) in enumerate([(5, 3), (2, 0), (2, 1)]):
            assert torch.equal(cache.pool[1, page, 0, offset], key[token])
            assert torch.equal(cache.pool[1, page, 1, offset], value[token])
        assert cache.pool.count_nonzero() == 2 * 3 * 2 * 8, "nothing else was touched"
        rows = cache.head_rows(batch.write_slots[None])
        keys, values = (read(1, rows, torch.float32) for read in (cache.keys, cache.values))
        assert torch.equal(keys, key.transpose(0, 1).flatten(0, 1))
        assert torch.equal(values, value.transpose(0, 1).flatten(0, 1))

    def test_a_page_of_a_layer_is_one_run_of_bytes(self) -> None:
        cache = KVCache(self.LAYOUT, 6, CPU)
        assert cache.pool[1][2].is_contiguous()
        assert cache.pool[1][2].nbytes == self.LAYOUT.layer_page_bytes
        assert cache.pool.nbytes == 6 * self.LAYOUT.page_bytes

    def test_pages_that_fit(self) -> None:
        page_bytes = self.LAYOUT.page_bytes
        assert [num_pages_that_fit(self.LAYOUT, page_bytes * 5 + d) for d in (-1, 0, 1)] == [
            4,
            5,
            5,
        ]
