"""llama.cpp as an engine of the comparison, through the low-level API of llama-cpp-python.

Weights, K and V are float32, as those of the other engines. Every sequence has cells of its own
(`kv_unified` off); the context of a decode cell is computed for one sequence and copied to the
others, which then read memory of their own. Everything is done with flash attention
and without, and the faster counts.
"""

from __future__ import annotations

import ctypes
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.engines.cells import LLAMA_CPP, WARM_UP_STEPS, Cell

F32 = 0
"""ggml's number of that type."""
FLASH = {False: 0, True: 1}
BATCH_TOKENS = 2048
"""llama.cpp's defaults: tokens of a call, which it computes 512 at a time."""


class LlamaCppError(Exception):
    """A call of llama.cpp failed."""


class LlamaCpp:
    name = LLAMA_CPP

    def __init__(self, gguf: Path, num_threads: int, vocab_size: int) -> None:
        llama_cpp.llama_log_set(_LOG, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(gguf), params)
        if not self._model:
            raise LlamaCppError(f"llama.cpp cannot load {gguf}")
        self._num_threads = num_threads
        self._vocab_size = vocab_size
        self._chance = random.Random(7)

    def prefill_s(self, cell: Cell) -> float:
        return min(self._prefill_s(cell, flash) for flash in FLASH)

    def step_s(self, cell: Cell) -> list[float]:
        return min((self._step_s(cell, flash) for flash in FLASH), key=np.median)

    def choices(self, tokens: Sequence[int], num_prompt_tokens: int) -> list[int]:
        with self._context(Cell(1, len(tokens), 0), flash=False) as context:
            chosen = context.decode([tokens[:num_prompt_tokens]], 0)
            for position in range(num_prompt_tokens, len(tokens)):
                chosen += context.decode([[tokens[position]]], position)
            return chosen

    def _prefill_s(self, cell: Cell, flash: bool) -> float:
        prompts = [self._tokens(cell.context) for _ in range(cell.batch)]
        with self._context(cell, flash) as context:
            started = time.perf_counter()
            context.decode(prompts, 0)
            return time.perf_counter() - started

    def _step_s(self, cell: Cell, flash: bool) -> list[float]:
        with self._context(cell, flash) as context:
            context.decode([self._tokens(cell.context)], 0)
            context.copy_first_to_others(cell.batch)
            tokens = self._tokens(cell.batch)
            times = []
            for i in range(WARM_UP_STEPS + cell.num_steps):
                started = time.perf_counter()
                tokens = context.decode([[token] for token in tokens], cell.context + i)
                times.append(time.perf_counter() - started)
            return times[WARM_UP_STEPS:]

    @contextmanager
    def _context(self, cell: Cell, flash: bool) -> Iterator[_Context]:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = cell.batch * -(-cell.length // 256) * 256
        params.n_batch = BATCH_TOKENS
        params.n_seq_max = cell.batch
        params.n_threads = params.n_threads_batch = self._num_threads
        params.flash_attn_type = FLASH[flash]
        params.type_k = params.type_v = F32
        params.kv_unified = False
        params.no_perf = True
        raw = llama_cpp.llama_init_from_model(self._model, params)
        if not raw:
            raise LlamaCppError(f"llama.cpp makes no context for {cell}")
        try:
            yield _Context(raw, self._vocab_size)
        finally:
            llama_cpp.llama_free(raw)

    def _tokens(self, count: int) -> list[int]:
        return [self._chance.randrange(3, self._vocab_size) for _ in range(count)]


class _Context:
    """One llama_context; sequences are numbered from 0."""

    def __init__(self, raw: Any, vocab_size: int) -> None:
        self._raw = raw
        self._vocab_size = vocab_size

    def decode(self, parts: Sequence[Sequence[int]], start: int) -> list[int]:
        """Computes `parts[i]` of sequence i, from position `start` on; the likeliest next tokens.

        Parts beyond BATCH_TOKENS are cut.
        """
        rows = [
            (token, start + i, sequence, i == len(part) - 1)
            for sequence, part in enumerate(parts)
            for i, token in enumerate(part)
        ]
        chosen = []
        for first in range(0, len(rows), BATCH_TOKENS):
            chosen += self._decode(rows[first : first + BATCH_TOKENS])
        return chosen

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """`rows`: token, position, sequence, whether the next token is wanted."""
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        try:
            batch.n_tokens = len(rows)
            for i, (token, position, sequence, is_wanted) in enumerate(rows):
                batch.token[i] = token
                batch.pos[i] = position
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
                batch.logits[i] = is_wanted
            if code := llama_cpp.llama_decode(self._raw, batch):
                raise LlamaCppError(f"llama_decode of {len(rows)} tokens: {code}")
        finally:
            llama_cpp.llama_batch_free(batch)
        num_wanted = sum(is_wanted for *_, is_wanted in rows)
        logits = llama_cpp.llama_get_logits(self._raw)  # waits
        if num_wanted == 0:
            return []
        table = np.ctypeslib.as_array(logits, (num_wanted, self._vocab_size))
        return [int(token) for token in table.argmax(axis=1)]

    def copy_first_to_others(self, num_sequences: int) -> None:
        """K and V of sequence 0; without `kv_unified` bytes are copied, not cells shared."""
        memory = llama_cpp.llama_get_memory(self._raw)
        for sequence in range(1, num_sequences):
            llama_cpp.llama_memory_seq_cp(memory, 0, sequence, -1, -1)


def _say_nothing(level: int, text: bytes, user_data: Any) -> None:
    pass


_LOG: Any = llama_cpp.llama_log_callback(_say_nothing)
"""llama.cpp calls it for as long as the process lives."""
