"""What the adapters hand to FlashAttention libraries, which need a GPU: here plain torch does as
their documentation says, with their own names of arguments."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.attention import flash_attention
from engine.attention.backend import AttentionForm
from engine.attention.flash_attention import FlashAttention, PromptKernel
from engine.batches.batch import Batch, SliceGroup
from engine.cache.kv_cache import KVCache
from tests.support.engine.attention import HEAD_DIM, Case

FORMS = [
    AttentionForm(HEAD_DIM**-0.5),
    AttentionForm(0.3, window=5),
    AttentionForm(0.2, window=40, softcap=2.0),
]
PARTS = [(0, 9), (17, 1), (5, 30), (2, 1), (60, 3)]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_starts: Tensor,
    contexts: Tensor,
    tables: Tensor,
    scale: float,
    left: int | None,
    softcap: float,
) -> Tensor:
    """`key` [pages, page_size, kv_heads, head_dim]; causal, aligned at the last tokens."""
    output = torch.empty_like(query)
    group = query.shape[1] // key.shape[2]
    for i, context in enumerate(contexts.tolist()):
        begin, end = row_starts[i : i + 2].tolist()
        k, v = (
            pages[tables[i].long()].flatten(0, 1)[:context].repeat_interleave(group, 1)
            for pages in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", query[begin:end], k) * scale
        if softcap:
            scores = softcap * (scores / softcap).tanh()
        last = torch.arange(context - (end - begin), context)[:, None]
        keys = torch.arange(context)
        seen = (keys <= last) & (keys >= last - (context if left is None else left))
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        output[begin:end] = torch.einsum("hqk,khd->qhd", weights, v)
    return output


def flash4_function(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> tuple[Tensor, None]:
    assert given.pop("causal")
    assert given.pop("max_seqlen_q") == given["cu_seqlens_q"].diff().max()
    assert given.pop("max_seqlen_k") == given["seqused_k"].max()
    left, right = given.pop("window_size")
    assert right in (None, 0)
    output = attend(
        q,
        k,
        v,
        given.pop("cu_seqlens_q"),
        given.pop("seqused_k"),
        given.pop("page_table"),
        given.pop("softmax_scale"),
        left,
        given.pop("softcap"),
    )
    assert not given
    return output, None


def flash3_function(q: Tensor, k_cache: Tensor, v_cache: Tensor, **given: Any) -> Tensor:
    assert given.pop("causal")
    assert given.pop("max_seqlen_q") == given["cu_seqlens_q"].diff().max()
    left, _ = given.pop("window_size")
    output = attend(
        q,
        k_cache,
        v_cache,
        given.pop("cu_seqlens_q"),
        given.pop("cache_seqlens"),
        given.pop("page_table"),
        given.pop("softmax_scale"),
        None if left == -1 else left,
        given.pop("softcap"),
    )
    assert not given
    return output


def flash2_function(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    assert given.pop("causal")
    contexts = given.pop("cu_seqlens_k").diff()
    assert given.pop("max_seqlen_q") == given["cu_seqlens_q"].diff().max()
    assert given.pop("max_seqlen_k") == contexts.max()
    left, _ = given.pop("window_size")
    output = attend(
        q,
        k,
        v,
        given.pop("cu_seqlens_q"),
        contexts,
        given.pop("block_table"),
        given.pop("softmax_scale"),
        None if left == -1 else left,
        given.pop("softcap"),
    )
    assert not given
    return output


def varlen_function(*arguments: Any, **given: Any) -> Tensor:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    signature = inspect.signature(varlen.varlen_attn)
    if "block_table" not in signature.parameters:
        pytest.skip("this torch's varlen_attn takes no page tables")
    bound = signature.bind(*arguments, **given).arguments
    assert bound["cu_seq_k"] is None
    assert bound["enable_gqa"]
    left, right = bound["window_size"]
    assert right == 0
    return attend(
        bound["query"],
        bound["key"],
        bound["value"],
        bound["cu_seq_q"],
        bound["seqused_k"],
        bound["block_table"],
        bound["scale"],
        None if left == -1 else left,
        0.0,
    )


KERNELS: dict[str, Callable[[], PromptKernel]] = {
    "flash4": lambda: flash_attention.flash4(
        SimpleNamespace(flash_attn_varlen_func=flash4_function)
    ),
    "flash3": lambda: flash_attention.flash3(
        SimpleNamespace(flash_attn_with_kvcache=flash3_function)
    ),
    "flash2": lambda: flash_attention.flash2(
        SimpleNamespace(flash_attn_varlen_func=flash2_function)
    ),
    "varlen": lambda: flash_attention.varlen(SimpleNamespace(varlen_attn=varlen_function)),
}


class Ours:
    """In place of the kernels of single tokens and short prompts, which need triton."""

    def forward(
        self, query: Tensor, layer: int, cache: KVCache, batch: Batch, form: AttentionForm
    ) -> Tensor:
        raise AssertionError("the prompts are long")

    def singles(
        self,
        query: Tensor,
        output: Tensor,
        layer: int,
        cache: KVCache,
        part: SliceGroup,
        form: AttentionForm,
    ) -> None:
        pool = cache.pool[layer]
        left = None if form.window is None else form.window - 1
        output[:] = attend(
            query,
            pool[:, 0],
            pool[:, 1],
            part.row_starts,
            part.context_lengths,
            part.page_tables,
            form.scale,
            left,
            form.softcap or 0.0,
        )


@pytest.mark.parametrize("form", FORMS, ids=["plain", "window", "softcap"])
@pytest.mark.parametrize("name", KERNELS)
def test_libraries_are_given_what_they_document(
    name: str, form: AttentionForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "varlen" and form.softcap is not None:
        pytest.skip("it has no softcap")
    monkeypatch.setattr(flash_attention, "FEW_ROWS", 0)
    case = Case(PARTS)
    backend = FlashAttention(name, KERNELS[name](), Ours())  # type: ignore[arg-type]
    output = backend.forward(case.query[case.rows], 1, case.cache, case.batch, form)
    left = None if form.window is None else form.window - 1
    pool = case.cache.pool[1]
    tables = torch.zeros(len(PARTS), 20, dtype=torch.int32)
    for table, part in zip(tables, case.slices, strict=True):
        table[: len(part.pages)] = torch.tensor(part.pages)
    lengths = torch.tensor([new for _, new in PARTS])
    expected = attend(
        case.query,
        pool[:, 0],
        pool[:, 1],
        torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))),
        torch.tensor([start + new for start, new in PARTS]),
        tables,
        form.scale,
        left,
        form.softcap or 0.0,
    )
    torch.testing.assert_close(output[case.back], expected)


def test_a_pool_of_short_prompts_is_for_our_kernels() -> None:
    case = Case(PARTS)
    backend = FlashAttention("flash", KERNELS["flash4"](), Ours())  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="the prompts are long"):
        backend.forward(case.query[case.rows], 1, case.cache, case.batch, FORMS[0])
