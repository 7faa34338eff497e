"""Batches for the attention back ends, and what a naive reference makes of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from ctypes import CDLL

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend, AttentionForm
from engine.attention.token_pieces import TokenPiece
from engine.batches.batch import Batch
from engine.batches.sequence import Slice
from engine.cache.fp8 import from_fp8, scales_of, to_fp8
from engine.cache.kv_cache import slots_of
from engine.cache.make_cache import make_cache
from protocol.layout import FP8, KVLayout, Scales
from tests.support.engine.driving import CPU

HEAD_DIM = 16

# Tokens before the slice, and tokens of the slice.
PROMPTS = [(0, 2), (0, 4), (0, 13), (0, 50)]
CHUNKS = [(1, 2), (3, 6), (4, 4), (37, 5)]
SINGLES = [(0, 1), (3, 1), (4, 1), (21, 1), (60, 1)]


def form_of(window: int | None, softcap: float | None = None) -> AttentionForm:
    return AttentionForm(HEAD_DIM**-0.5, window, softcap)


def rounded(heads: Tensor, static_scales: Tensor | None = None) -> Tensor:
    """What is left of `heads` [tokens, kv_heads, head_dim] in FP8 pages, in float32."""
    scales = scales_of(heads) if static_scales is None else static_scales.expand(heads.shape[:2])
    return from_fp8(to_fp8(heads, scales).view(torch.uint8), scales)


class Case:
    """Sequences of random K and V on scattered pages of a pool full of NaN."""

    def __init__(
        self,
        parts: Sequence[tuple[int, int]],
        page_size: int = 4,
        kv_heads: int = 2,
        group: int = 3,
        seed: int = 0,
        head_dim: int = HEAD_DIM,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        scales: Scales = "",
        library: CDLL | None = None,
    ) -> None:
        """`parts`: (tokens before, tokens of the slice) per sequence. With `scales` the pages are
        of FP8; `library` is as `make_cache` takes it."""
        chance = torch.Generator().manual_seed(seed)
        name = FP8 if scales else str(dtype).removeprefix("torch.")
        layout = KVLayout(page_size, 2, kv_heads, head_dim, name, scales)
        contexts = [start + new for start, new in parts]
        free = list(range(sum(layout.num_pages(n) for n in contexts) + 3))
        static = torch.rand(2, 2, kv_heads) * 0.1 + 0.01 if scales == "static" else None
        self.cache = make_cache(layout, len(free), device, static, library)
        self.cache.storage.fill_(255)  # NaN: whoever looks where nobody wrote is found out

        def random_tensor(*shape: int) -> Tensor:
            """On the host, of numbers that `dtype` has."""
            return torch.randn(*shape, generator=chance).to(dtype)

        random.Random(seed).shuffle(free)
        self.keys = [random_tensor(n, kv_heads, head_dim) for n in contexts]
        self.values = [random_tensor(n, kv_heads, head_dim) for n in contexts]
        self.slices = []
        for (start, new), key, value in zip(parts, self.keys, self.values, strict=True):
            pages = [free.pop() for _ in range(layout.num_pages(start + new))]
            tokens = torch.arange(start + new)
            its = torch.tensor(pages)[tokens // page_size]
            slots = slots_of(its, tokens % page_size, page_size)
            self.cache.write(1, *(heads.to(device) for heads in (key, value, slots)))
            self.slices.append(Slice([0] * new, start, pages, None))
        if scales:
            self.keys = [
                rounded(key, None if static is None else static[1, 0]) for key in self.keys
            ]
            self.values = [
                rounded(value, None if static is None else static[1, 1]) for value in self.values
            ]
        self.batch = Batch.build(self.slices, page_size, device)
        num_tokens = sum(new for _, new in parts)
        self.rows = self._rows([new for _, new in parts])
        self.back = self.rows.argsort()
        self.query = random_tensor(num_tokens, kv_heads * group, head_dim)

    def _rows(self, lengths: list[int]) -> Tensor:
        """Row of the slices, one after another, that each row of the batch is."""
        ends = list(itertools.accumulate(lengths))
        spans = [range(end - n, end) for end, n in zip(ends, lengths, strict=True)]
        ordered = [s for s in spans if len(s) > 1] + [s for s in spans if len(s) == 1]
        return torch.tensor([row for span in ordered for row in span])

    def reference(self, form: AttentionForm) -> Tensor:
        """One softmax per token and head, in float64."""
        outputs = []
        queries = iter(self.query.double())
        for part, key, value in zip(self.slices, self.keys, self.values, strict=True):
            for last in range(part.start, part.start + len(part.token_ids)):
                first = 0 if form.window is None else max(0, last + 1 - form.window)
                query = next(queries)
                k, v = key[first : last + 1].double(), value[first : last + 1].double()
                grouped = query.unflatten(0, (k.shape[1], -1))  # [kv_heads, group, head_dim]
                scores = torch.einsum("hgd,thd->hgt", grouped, k) * form.scale
                if form.softcap is not None:
                    scores = form.softcap * torch.tanh(scores / form.softcap)
                output = torch.einsum("hgt,thd->hgd", scores.softmax(-1), v)
                outputs.append(output.flatten(0, 1))
        return torch.stack(outputs)

    def output(self, backend: AttentionBackend, form: AttentionForm) -> Tensor:
        """In the order of the slices, on the host."""
        query = self.query[self.rows].to(self.cache.pool.device)
        output = backend.forward(query, 1, self.cache, self.batch, form)
        assert output.shape == query.shape
        assert output.dtype == query.dtype
        return output.cpu()[self.back]

    def check(self, backend: AttentionBackend, form: AttentionForm) -> None:
        bits = {torch.float32: (8e-6, 1e-5), torch.float16: (3e-3, 3e-3)}
        atol, rtol = bits.get(self.query.dtype, (0.02, 0.02))
        output, expected = self.output(backend, form).double(), self.reference(form)
        torch.testing.assert_close(output, expected, atol=atol, rtol=rtol)


def planned(
    pieces: Sequence[TokenPiece], contexts: Sequence[int], window: int | None, block: int
) -> list[list[int]]:
    """Returns what a plan on the device has to say of each of `pieces`: its sequence, its keys in
    whole blocks, the first key that is seen, and which pieces its sequence has."""
    owners = [piece.sequence for piece in pieces]
    return [
        [
            piece.sequence,
            piece.begin // block * block,
            piece.end,
            max(0, contexts[piece.sequence] - window) if window else 0,
            owners.index(piece.sequence),
            owners.count(piece.sequence),
        ]
        for piece in pieces
    ]
