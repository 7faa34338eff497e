"""`FlashAttention` computes prompts with a library's FlashAttention kernels over paged KV, on CUDA
in half precision.

Single tokens go through our split-KV kernels, because flash-attn-4 has none on Hopper. Short
prompts go through our kernels too: a call of flash-attn-4 costs the host 0.4 ms, which is more than
the device needs for a layer of them.

    flash-attn 4   flash_attn.cute            any page size
    flash-attn 3   flash_attn_interface       any page size; no GPU has run this adapter yet
    flash-attn 2   flash_attn                 pages of 256 tokens; no GPU has run this adapter yet
    torch >= 2.12  torch.nn.attention.varlen  no GPU has run this adapter yet
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.attention.backend import AttentionForm
from engine.batches.batch import Batch, SliceGroup
from engine.cache.kv_cache import KVCache

if TYPE_CHECKING:
    from engine.attention.triton_attention import TritonAttention

PromptKernel = Callable[[Tensor, Tensor, Tensor, SliceGroup, AttentionForm], Tensor]
"""Takes query [rows, heads, head_dim], K and V as [pages, page_size, kv_heads, head_dim], the part
and the form; returns the shape of query."""
FLASH2_PAGE_SIZE = 256
FLASH4_CAPABILITIES = (9, 10, 11)
"""Hopper and Blackwell. On other GPUs flash-attn 4 has no paged KV."""
FLASH3_CAPABILITY = 9
FEW_ROWS = 1024
"""Prompts of a step with fewer rows count as short. An H100 takes 0.7 ms for a layer of Llama-3-8B
with so many rows; the host keeps ahead of it from there on."""
SHORT_CONTEXT = 8192
"""Few rows on a longer context do not count as short: the device takes longer than the host
again."""


class FlashAttention:
    """Long prompts go to `prompts`, the library's kernel; everything else goes to `ours`."""

    def __init__(self, name: str, prompts: PromptKernel, ours: TritonAttention) -> None:
        self.name = name
        self._prompts = prompts
        self._ours = ours

    def forward(
        self, query: Tensor, layer: int, cache: KVCache, batch: Batch, form: AttentionForm
    ) -> Tensor:
        prompts, singles = batch.prompts, batch.singles
        if prompts is None or _is_short(prompts):
            return self._ours.forward(query, layer, cache, batch, form)
        pool = cache.pool[layer]
        rows = query[: prompts.end]
        output = self._prompts(rows, pool[:, 0], pool[:, 1], prompts, form)
        if singles is None:
            return output
        output = torch.cat((output, torch.empty_like(query[singles.begin :])))
        rest = slice(singles.begin, None)
        self._ours.singles(query[rest], output[rest], layer, cache, singles, form)
        return output


def _is_short(prompts: SliceGroup) -> bool:
    return prompts.end - prompts.begin < FEW_ROWS and prompts.longest_context <= SHORT_CONTEXT


def flash_attention_kernel(page_size: int, device: torch.device) -> tuple[str, PromptKernel] | None:
    """Returns the name and kernel of the newest flash-attn that is installed, runs on this GPU and
    takes such pages; None if there is none."""
    major, _ = torch.cuda.get_device_capability(device)
    if major in FLASH4_CAPABILITIES and (module := _module("flash_attn.cute")) is not None:
        return "flash-attn 4", flash4(module)
    if major == FLASH3_CAPABILITY and (module := _module("flash_attn_interface")) is not None:
        return "flash-attn 3", flash3(module)
    module = _module("flash_attn")
    if module is None or page_size % FLASH2_PAGE_SIZE or not hasattr(module, "flash_attn_func"):
        return None
    return "flash-attn 2", flash2(module)


def varlen_kernel() -> tuple[str, PromptKernel] | None:
    """Returns torch's own kernel and its name; None if this torch's takes no page tables."""
    module = _module("torch.nn.attention.varlen")
    if module is None or "block_table" not in inspect.signature(module.varlen_attn).parameters:
        return None
    return "torch varlen", varlen(module)


def _module(name: str) -> Any | None:
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError):  # absent, or built for another torch or driver
        return None


def flash4(module: Any) -> PromptKernel:
    """Returns the kernel of flash-attn-4, whose `module` is given."""

    def prompts(
        query: Tensor, key: Tensor, value: Tensor, part: SliceGroup, form: AttentionForm
    ) -> Tensor:
        output = module.flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=part.row_starts,
            max_seqlen_q=part.longest_slice,
            max_seqlen_k=part.longest_context,
            seqused_k=part.context_lengths,
            page_table=part.page_tables,
            softmax_scale=form.scale,
            causal=True,
            window_size=(None, None) if form.window is None else (form.window - 1, 0),
            softcap=form.softcap or 0.0,
        )
        return output[0] if isinstance(output, tuple) else output

    return prompts


def flash3(module: Any) -> PromptKernel:
    """Returns the kernel of flash-attn-3, whose `module` is given."""

    def prompts(
        query: Tensor, key: Tensor, value: Tensor, part: SliceGroup, form: AttentionForm
    ) -> Tensor:
        return module.flash_attn_with_kvcache(
            query,
            key,
            value,
            cache_seqlens=part.context_lengths,
            page_table=part.page_tables,
            cu_seqlens_q=part.row_starts,
            max_seqlen_q=part.longest_slice,
            softmax_scale=form.scale,
            causal=True,
            window_size=_window(form),
            softcap=form.softcap or 0.0,
        )

    return prompts


def flash2(module: Any) -> PromptKernel:
    """Returns the kernel of flash-attn 2, whose `module` is given."""

    def prompts(
        query: Tensor, key: Tensor, value: Tensor, part: SliceGroup, form: AttentionForm
    ) -> Tensor:
        return module.flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=part.row_starts,
            cu_seqlens_k=F.pad(part.context_lengths.cumsum(0, dtype=torch.int32), (1, 0)),
            max_seqlen_q=part.longest_slice,
            max_seqlen_k=part.longest_context,
            softmax_scale=form.scale,
            causal=True,
            window_size=_window(form),
            softcap=form.softcap or 0.0,
            block_table=part.page_tables,
        )

    return prompts


def varlen(module: Any) -> PromptKernel:
    """Returns torch's own kernel, whose `module` is given."""

    def prompts(
        query: Tensor, key: Tensor, value: Tensor, part: SliceGroup, form: AttentionForm
    ) -> Tensor:
        assert form.softcap is None, "make_attention gives such models another back end"
        return module.varlen_attn(
            query,
            key,
            value,
            part.row_starts,
            None,
            part.longest_slice,
            part.longest_context,
            scale=form.scale,
            window_size=_window(form, causal_right=0),
            enable_gqa=query.shape[1] != key.shape[2],
            seqused_k=part.context_lengths,
            block_table=part.page_tables,
        )

    return prompts


def _window(form: AttentionForm, causal_right: int = -1) -> tuple[int, int]:
    """Returns how many tokens to the left and to the right a token sees; -1: all that causality
    lets."""
    if form.window is None:
        return -1, causal_right
    return form.window - 1, 0
