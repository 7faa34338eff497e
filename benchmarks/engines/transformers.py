"""Hugging Face transformers as an engine of the comparison. Knows how it is called, no figures.

The model is called step by step, as its `generate` does, with its own cache; `generate_step_s`
shows what `generate` itself takes.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar

from benchmarks.engines.cells import TRANSFORMERS, WARM_UP_STEPS, Cell


class Transformers:
    name = TRANSFORMERS

    def __init__(self, model: Path, dtype: torch.dtype) -> None:
        disable_progress_bar()
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, attn_implementation="sdpa"
        ).eval()
        # The name of the argument differs between versions.
        names = inspect.signature(self._model.forward).parameters
        self._cache_argument = "cache" if "cache" in names else "past_key_values"
        # Every answer is as long as it is asked to be.
        self._model.generation_config.eos_token_id = None
        self._dtype = dtype

    @torch.inference_mode()
    def prefill_s(self, cell: Cell) -> float:
        prompts = self._tokens(cell.batch, cell.context)
        started = time.perf_counter()
        self._step(prompts, DynamicCache(config=self._model.config)).tolist()
        return time.perf_counter() - started

    @torch.inference_mode()
    def step_s(self, cell: Cell) -> list[float]:
        cache = self._filled(cell)
        tokens = self._tokens(cell.batch, 1)
        times = []
        for _ in range(WARM_UP_STEPS + cell.num_steps):
            started = time.perf_counter()
            tokens = self._step(tokens, cache)
            tokens.tolist()
            times.append(time.perf_counter() - started)
        return times[WARM_UP_STEPS:]

    @torch.inference_mode()
    def generate_step_s(self, cell: Cell) -> float:
        """Seconds of a step of `generate`, mean of as many as `step_s` takes, all of its own work
        shared among them."""
        cache = self._filled(cell)
        prompts = self._tokens(cell.batch, cell.context + 1)  # of which the last is computed
        num_steps = WARM_UP_STEPS + cell.num_steps
        started = time.perf_counter()
        self._model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            **{self._cache_argument: cache},
            max_new_tokens=num_steps,
            do_sample=False,
        )
        return (time.perf_counter() - started) / num_steps

    @torch.inference_mode()
    def choices(self, tokens: Sequence[int], num_prompt_tokens: int) -> list[int]:
        cache = DynamicCache(config=self._model.config)
        chosen = self._step(torch.tensor([tokens[:num_prompt_tokens]]), cache).flatten().tolist()
        for token in tokens[num_prompt_tokens:]:
            chosen += self._step(torch.tensor([[token]]), cache).flatten().tolist()
        return chosen

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """After every token, in one step: [tokens, vocab]."""
        return self._model(torch.tensor([tokens])).logits[0].float()

    def _step(self, tokens: Tensor, cache: DynamicCache) -> Tensor:
        """The likeliest next token of each of [batch, n]: [batch, 1]."""
        output = self._model(
            tokens, **{self._cache_argument: cache}, use_cache=True, logits_to_keep=1
        )
        return output.logits[:, -1:].argmax(dim=-1)

    def _filled(self, cell: Cell) -> DynamicCache:
        config = self._model.config
        cache = DynamicCache(config=config)
        token = torch.randn(cell.batch, config.num_key_value_heads, 1, _head_dim(config))
        for layer in range(config.num_hidden_layers):
            key_value = token.to(self._dtype).repeat(1, 1, cell.context, 1)
            cache.update(key_value, key_value, layer)
        return cache

    def _tokens(self, batch: int, count: int) -> Tensor:
        return torch.randint(3, self._model.config.vocab_size, (batch, count))


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
