"""Attention back ends over FP8 pages, against a naive reference with the rounded K and V."""

from __future__ import annotations

import math

import pytest
import torch

from engine.attention.backend import AttentionForm
from protocol.layout import Scales
from tests.support.engine.attention import CHUNKS, PROMPTS, SINGLES, Case, form_of
from tests.support.engine.attention_backends import BACKENDS
from tests.support.engine.native import compiled

MIXED = [*SINGLES, *CHUNKS, *PROMPTS]
EXTREMES = [(3000, 1), (0, 1), (2, 1), (900, 1), (0, 300), (500, 140), (0, 2), (1800, 2)]


@pytest.fixture(params=["token", "static"])
def scales(request: pytest.FixtureRequest) -> Scales:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    return request.param


@pytest.fixture(params=BACKENDS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def case_of(name: str, *arguments: object, **given: object) -> Case:
    """With a pool as the back end called `name` has it."""
    library = compiled() if name == "native" else None
    return Case(*arguments, library=library, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 3, 700])
def test_equals_the_reference(
    name: str, scales: Scales, window: int | None, softcap: float | None
) -> None:
    backend = BACKENDS[name]()
    case_of(name, MIXED, scales=scales).check(backend, form_of(window, softcap))
    case_of(name, EXTREMES, 16, scales=scales).check(backend, form_of(window, softcap))


@pytest.mark.parametrize(
    ("page_size", "kv_heads", "group", "head_dim"),
    [(1, 1, 1, 16), (4, 1, 20, 80), (16, 8, 4, 128), (2, 3, 3, 20), (32, 2, 7, 64)],
)
def test_heads_and_page_sizes(
    name: str, scales: Scales, page_size: int, kv_heads: int, group: int, head_dim: int
) -> None:
    parts = [(0, 9), (170, 1), (50, 33), (2, 1)]
    case = case_of(name, parts, page_size, kv_heads, group, head_dim=head_dim, scales=scales)
    case.check(BACKENDS[name](), AttentionForm(head_dim**-0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name: str, scales: Scales, dtype: torch.dtype) -> None:
    case = case_of(name, [(0, 20), (33, 1), (4, 7), (70, 301)], dtype=dtype, scales=scales)
    case.check(BACKENDS[name](), form_of(None))


def test_a_poisoned_sequence_poisons_no_other(name: str, scales: Scales) -> None:
    """A neighbour whose KV overflowed shares the batch."""
    case = case_of(name, [(9, 1), (30, 1), (0, 6), (2, 1)], scales=scales)
    clean = case.reference(form_of(None))
    case.cache.storage[1][list(case.slices[1].pages)] = 255
    output = case.output(BACKENDS[name](), form_of(None))
    others = [0, *range(2, 9)]
    torch.testing.assert_close(output[others].double(), clean[others], atol=8e-6, rtol=1e-5)
    assert output[1].isnan().all()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_no_number_stays_none(scales: Scales, poison: float) -> None:
    """A row with such K fails, as it does with pages of float32."""
    for name in BACKENDS:
        case = case_of(name, [(40, 1), (5, 4)], scales=scales)
        key, value = (heads[0][:1].clone() for heads in (case.keys, case.values))
        key[:, 1, 3] = poison
        slots = torch.tensor([case.slices[0].pages[0] * 8])
        case.cache.write(1, key, value, slots)
        output = case.output(BACKENDS[name](), form_of(None))
        is_lost = math.isnan(poison) or scales == "token"  # one scale for all: inf is cut to 448
        assert bool(output[0, 3:].isnan().any()) == is_lost
        assert not output[0, :3].isnan().any(), "the other head's"
        assert not output[1:].isnan().any()
