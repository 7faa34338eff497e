"""Logprobs of prompts: what the runner says of a slice is what transformers' logits say, however
the prompt is cut and whoever shares the step."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import engine.sampling.prompt_logprobs as measuring
from engine.batches.sequence import Sequence, Slice
from engine.build import load_model_runner
from engine.cache.prefix_cache import PrefixCache
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from protocol.prompt_logprobs import PromptLogprobs, joined, rows_of
from protocol.sampling import Sampling
from tests.support.driving import CPU, GREEDY, PAGE_SIZE, prompt_of
from tests.support.families import save_random_model

NUM_PAGES = 200


@pytest.fixture(scope="module", params=["llama3", "gemma3", "qwen3-moe"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, ModelRunner]:
    torch.set_num_threads(1)
    path: Path = tmp_path_factory.mktemp(request.param)
    reference = save_random_model(request.param, path)
    options = EngineOptions("float32", PAGE_SIZE)
    return reference, load_model_runner(path, options, lambda _: NUM_PAGES, CPU)


def asking(prompt: Seq[int], start: int, num_top: int = 0, wanted: Seq[int] = ()) -> Sampling:
    return Sampling(
        temperature=0.0,
        prompt_length=len(prompt),
        num_top_logprobs=num_top,
        logprob_token_ids=tuple(wanted),
        prompt_logprobs_from=start,
    )


class Computed:
    """Computes sequences as a scheduler would, several at once."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._cache = PrefixCache(NUM_PAGES)

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
    return reference(torch.tensor([prompt])).logits[0, :-1].float().log_softmax(-1)


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


@pytest.mark.parametrize("chunk", [10_000, 16, 7, 1])
@pytest.mark.parametrize("start", [0, 1, 16, 39])
def test_they_are_those_of_transformers_however_a_prompt_is_cut(
    pair: tuple[PreTrainedModel, ModelRunner], start: int, chunk: int
) -> None:
    reference, runner = pair
    prompt = prompt_of(40, reference.config.vocab_size)
    sampling = asking(prompt, start, num_top=3, wanted=[5, 7])
    computed = Computed(runner)
    [parts] = computed.parts([computed.sequence(prompt, sampling)], chunk)
    check(joined(parts), expected_logprobs(reference, prompt), prompt, sampling)


def test_requests_of_one_step_get_each_what_they_ask_for(
    pair: tuple[PreTrainedModel, ModelRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of a few rows, which end in the midst of slices."""
    reference, runner = pair
    vocab_size = reference.config.vocab_size
    monkeypatch.setattr(measuring, "BLOCK_VALUES", 5 * vocab_size)
    prompts = [prompt_of(length, vocab_size, seed=length) for length in (1, 2, 33, 50, 20, 7)]
    samplings = [
        asking(prompts[0], 0),
        asking(prompts[1], 0, num_top=2),
        asking(prompts[2], 8, wanted=[1, 2, 3]),
        asking(prompts[3], 0, num_top=4, wanted=[9]),
        GREEDY,
        asking(prompts[5], 3),
    ]
    computed = Computed(runner)
    sequences = [computed.sequence(p, s) for p, s in zip(prompts, samplings, strict=True)]
    parts = computed.parts(sequences, 11)
    assert parts[0] == parts[4] == []
    for i in (1, 2, 3, 5):
        expected = expected_logprobs(reference, prompts[i])
        check(joined(parts[i]), expected, prompts[i], samplings[i])


def test_more_likely_tokens_than_the_vocabulary_has_are_all_of_it(
    pair: tuple[PreTrainedModel, ModelRunner],
) -> None:
    reference, runner = pair
    prompt = prompt_of(3, reference.config.vocab_size)
    computed = Computed(runner)
    sampling = asking(prompt, 0, num_top=reference.config.vocab_size + 10)
    [parts] = computed.parts([computed.sequence(prompt, sampling)], 100)
    [first, _] = rows_of(parts[0], 0, 2)
    assert sorted(first.top_ids) == list(range(reference.config.vocab_size))


def test_a_step_without_the_ask_asks_the_head_for_sampled_rows_alone(
    pair: tuple[PreTrainedModel, ModelRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, runner = pair
    asked: list[int] = []
    logits_of = runner.model.logits

    def counted(hidden: Tensor) -> Tensor:
        asked.append(len(hidden))
        return logits_of(hidden)

    monkeypatch.setattr(runner.model, "logits", counted)
    runner.run([Slice(prompt_of(20, 100), 0, [0, 1], GREEDY)])
    assert asked == [1]
