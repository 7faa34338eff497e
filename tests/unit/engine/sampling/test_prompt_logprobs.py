"""Logprobs of prompts: what the runner says of a slice is what transformers' logits say, however
the prompt is cut and whoever shares the step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import engine.sampling.prompt_logprobs as measuring
from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from protocol.prompt_logprobs import joined, rows_of
from tests.support.engine.driving import CPU, GREEDY, PAGE_SIZE, prompt_of
from tests.support.models.families import save_random_model
from tests.support.processes.scored_prompts import (
    NUM_PAGES,
    ScoredPrompts,
    asking,
    check,
    expected_logprobs,
)


@pytest.fixture(scope="module", params=["llama3", "gemma3", "qwen3-moe"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, ModelRunner]:
    torch.set_num_threads(1)
    path: Path = tmp_path_factory.mktemp(request.param)
    reference = save_random_model(request.param, path)
    options = EngineOptions("float32", PAGE_SIZE)
    return reference, load_model_runner(path, options, lambda _: NUM_PAGES, CPU)


@pytest.mark.parametrize("chunk", [10_000, 16, 7, 1])
@pytest.mark.parametrize("start", [0, 1, 16, 39])
def test_they_are_those_of_transformers_however_a_prompt_is_cut(
    pair: tuple[PreTrainedModel, ModelRunner], start: int, chunk: int
) -> None:
    reference, runner = pair
    prompt = prompt_of(40, reference.config.vocab_size)
    sampling = asking(prompt, start, num_top=3, wanted=[5, 7])
    computed = ScoredPrompts(runner)
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
    computed = ScoredPrompts(runner)
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
    computed = ScoredPrompts(runner)
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
