"""Prompts whose logprobs are asked for, computed as a scheduler would, and what they must be."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.batches.sequence import Sequence
from engine.cache.prefix_cache import PrefixCache
from engine.steps.runner import ModelRunner
from protocol.prompt_logprobs import PromptLogprobs, rows_of
from protocol.sampling import Sampling
from tests.support.engine.driving import PAGE_SIZE

NUM_PAGES = 200
ASKED = {"return_logprob": True, "top_logprobs_num": 3, "token_ids_logprob": [9, 100]}
"""A part of the body of a request, beside its `logprob_start_len`."""


def asking(prompt: Seq[int], start: int, num_top: int = 0, wanted: Seq[int] = ()) -> Sampling:
    return Sampling(
        temperature=0.0,
        prompt_length=len(prompt),
        num_top_logprobs=num_top,
        logprob_token_ids=tuple(wanted),
        prompt_logprobs_from=start,
    )


class ScoredPrompts:
    """Sequences of one runner, computed several at once."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._cache = PrefixCache(NUM_PAGES, PAGE_SIZE)

    def sequence(self, prompt: list[int], sampling: Sampling) -> Sequence:
        held = self._cache.acquire([], -(-len(prompt) // PAGE_SIZE), 0.0)
        assert held is not None
        start = max(1, sampling.prompt_logprobs_from)
        scores_from = start if sampling.prompt_logprobs_from >= 0 else None
        return Sequence(list(prompt), held, sampling, 0, 1, scores_from)

    def parts(self, sequences: Seq[Sequence], chunk: int) -> list[list[PromptLogprobs]]:
        """Returns what each was told, step by step; each ends with a sampled token."""
        parts: list[list[PromptLogprobs]] = [[] for _ in sequences]
        left = list(range(len(sequences)))
        while left:
            slices = [sequences[i].next_slice(chunk, at) for at, i in enumerate(left)]
            for i, part, new in zip(
                list(left), slices, self._runner.start(slices).sampled(), strict=True
            ):
                sequences[i].computed(part)
                if new is not None and new.prompt_logprobs is not None:
                    parts[i].append(new.prompt_logprobs)
                if part.sampling is not None:
                    assert new is not None and len(new.tokens) == 1
                    left.remove(i)
        return parts


@torch.inference_mode()
def expected_logprobs(reference: PreTrainedModel, prompt: list[int]) -> Tensor:
    """Returns [positions - 1, vocab]: row i is about position i + 1."""
    return reference(torch.tensor([prompt], device=reference.device)).logits[0, :-1].log_softmax(-1)


def check(
    logprobs: PromptLogprobs, expected: Tensor, prompt: list[int], sampling: Sampling
) -> None:
    start = max(1, sampling.prompt_logprobs_from)
    assert (logprobs.start, logprobs.end) == (start, len(prompt))
    rows = rows_of(logprobs, 0, logprobs.num_positions)
    assert len(rows) == len(prompt) - start
    for position, row in enumerate(rows, start):
        truth = expected[position - 1]
        assert row.chosen == pytest.approx(float(truth[prompt[position]]), abs=1e-4)
        assert len(row.top) == sampling.num_top_logprobs
        best = truth.topk(max(1, sampling.num_top_logprobs)).values.tolist()
        assert len(row.top_ids) == len(row.top)
        for token, logprob, likely in zip(row.top_ids, row.top, best, strict=False):
            assert logprob == pytest.approx(float(truth[token]), abs=1e-4)
            assert logprob == pytest.approx(likely, abs=1e-4)
        assert len(row.wanted) == len(sampling.logprob_token_ids)
        for token, logprob in zip(sampling.logprob_token_ids, row.wanted, strict=True):
            assert logprob == pytest.approx(float(truth[token]), abs=1e-4)


def check_meta(meta: dict[str, Any], prompt: list[int], expected: Tensor, start: int = 0) -> None:
    """Checks the meta_info of an answer to `ASKED`; `expected` as by `expected_logprobs`."""
    lists = [meta[f"input_{name}_logprobs"] for name in ("token", "top", "token_ids")]
    assert [len(entries) for entries in lists] == [len(prompt) - start] * 3
    assert meta["prompt_tokens"] == len(prompt) and meta["cached_tokens"] <= start
    for position, token, top, wanted in zip(range(start, len(prompt)), *lists, strict=True):
        assert token[1] == prompt[position]
        if position == 0:
            assert token[0] is None and top is None and wanted is None
            continue
        truth = expected[position - 1]
        best = truth.topk(3)
        assert token[0] == pytest.approx(float(truth[prompt[position]]), abs=1e-3)
        assert [entry[0] for entry in top] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert [entry[1] for entry in wanted] == [9, 100]
        for logprob, other, _ in [*top, *wanted]:
            assert logprob == pytest.approx(float(truth[other]), abs=1e-3)
