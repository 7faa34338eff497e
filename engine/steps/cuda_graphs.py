"""`DecodeGraphs`: decode steps recorded as CUDA graphs, one per batch size.

A step of single tokens is hundreds of kernels of a few microseconds; replaying a graph costs the
host as much as launching a few of them. A batch is padded to the next recorded size by repeating
the row with the shortest context: the copies compute, and write, what that row does.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend
from engine.batches.batch import Batch, SliceGroup, StepArrays, known_ids
from engine.batches.sequence import UNKNOWN
from engine.cache.kv_cache import KVCache
from engine.model.decoder import DecoderModel

MAX_PREVIOUS = 1024
"""A recorded step can follow a step of at most so many slices."""


def graph_sizes(max_requests: int) -> list[int]:
    """Returns the batch sizes to record: 1, 2, 4, then every eighth size, from 64 on every
    sixteenth. Padding to the next of these costs little."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, max_requests + 16, 16)]
    return [*[size for size in sizes if size < max_requests], max_requests]


class DecodeGraphs:
    """Records the graphs of one model when it is made, so that no step waits for that, and replays
    them."""

    def __init__(
        self,
        model: DecoderModel,
        kv_cache: KVCache,
        attention: AttentionBackend,
        device: torch.device,
        max_requests: int,
        max_pages: int,
    ) -> None:
        """`max_pages` is the most pages that one sequence has."""
        self._model = model
        self._kv_cache = kv_cache
        self._attention = attention
        self._max_pages = max_pages
        self._sizes = graph_sizes(max_requests)
        largest = self._sizes[-1]
        self._rows = torch.zeros(4 * largest, dtype=torch.int64, device=device)
        self._tables = torch.zeros(largest, max_pages, dtype=torch.int32, device=device)
        self._contexts = torch.ones(largest, dtype=torch.int32, device=device)
        self._starts = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self._previous = torch.zeros(MAX_PREVIOUS, dtype=torch.int64, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._logits: dict[int, Tensor] = {}
        self._record(device)

    @property
    def num_recorded(self) -> int:
        """How many graphs were recorded so far."""
        return len(self._graphs)

    def takes(self, arrays: StepArrays, previous_tokens: Tensor | None) -> bool:
        """Returns whether a graph was recorded for the step: it has single tokens only, each of
        them wants a sampled one, and they are not too many nor their sequences too long."""
        return (
            arrays.num_prompts == 0
            and len(arrays.samplings) == arrays.num_slices <= self._sizes[-1]
            and arrays.page_tables.shape[1] <= self._max_pages
            and (previous_tokens is None or len(previous_tokens) <= MAX_PREVIOUS)
        )

    def run(self, arrays: StepArrays, previous_tokens: Tensor | None) -> Tensor:
        """Replays the step. Returns logits [slices, vocab] in the order of the slices; the next
        `run` overwrites them."""
        num = arrays.num_slices
        size = self._sizes[bisect_left(self._sizes, num)]
        if previous_tokens is not None:
            self._previous[: len(previous_tokens)].copy_(previous_tokens)
        arrays_of_rows = (arrays.input_ids, arrays.sources, arrays.positions, arrays.write_slots)
        again = int(arrays.context_lengths.argmin())
        rows = _pinned(np.stack(arrays_of_rows), size, again, np.int64)
        self._rows[: 4 * size].copy_(rows, non_blocking=True)
        tables = arrays.page_tables
        packed = np.concatenate((arrays.context_lengths[:, None], tables), axis=1)
        flat = _pinned(packed.T, size, again, np.int32).to(self._tables.device, non_blocking=True)
        columns = flat.view(-1, size)
        self._contexts[:size].copy_(columns[0])
        self._tables[:size, : tables.shape[1]].copy_(columns[1:].T)
        self._graphs[size].replay()
        return self._logits[size][:num]

    def _record(self, device: torch.device) -> None:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        pool = None
        with torch.cuda.stream(stream):
            for size in reversed(self._sizes):  # the largest first: the others fit in its memory
                rows = self._rows[: 4 * size].view(4, size).zero_()
                rows[1] = UNKNOWN
                self._forward(size)  # compiles kernels and fills caches
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    self._logits[size] = self._forward(size)
                self._graphs[size], pool = graph, graph.pool()
        torch.cuda.current_stream(device).wait_stream(stream)

    def _forward(self, size: int) -> Tensor:
        ids, sources, positions, write_slots = self._rows[: 4 * size].view(4, size)
        singles = SliceGroup(
            begin=0,
            end=size,
            row_starts=self._starts[: size + 1],
            page_tables=self._tables[:size],
            context_lengths=self._contexts[:size],
            row_starts_host=np.arange(size + 1),
            context_lengths_host=np.ones(size, dtype=np.int64),
            longest_slice=1,
            longest_context=self._max_pages * self._kv_cache.layout.page_size,
        )
        batch = Batch(
            input_ids=known_ids(ids, sources, self._previous),
            positions=positions,
            write_slots=write_slots,
            prompts=None,
            singles=singles,
            sample_rows=self._starts[:size].long(),
            samplings=[],
            sample_positions=[],
        )
        return self._model(batch, self._kv_cache, self._attention)


def _pinned(rows: np.ndarray, size: int, again: int, dtype: type) -> Tensor:
    """Copies `rows` [n, k] into pinned memory, flat: [n * size]. The places of a row behind its k
    values repeat the one at `again`."""
    padded: np.ndarray = np.empty((rows.shape[0], size), dtype=dtype)
    padded[:, : rows.shape[1]] = rows
    padded[:, rows.shape[1] :] = rows[:, again, None]
    return torch.from_numpy(padded.ravel()).pin_memory()
