"""On CUDA the logprobs of prompts are those of transformers on the same device, also beside answers
whose steps are started before the ones before them are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import engine.sampling.prompt_logprobs as measuring
from engine.batches.sequence import UNKNOWN, Slice
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from protocol.prompt_logprobs import PromptLogprobs, joined
from tests.support.engine.driving import GREEDY, PAGE_SIZE, Sequences, prompt_of
from tests.support.models.families import save_random_model
from tests.support.processes.scored_prompts import (
    NUM_PAGES,
    ScoredPrompts,
    asking,
    check,
    expected_logprobs,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.fixture(scope="module", params=["llama3", "gemma3", "qwen3-moe"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, ModelRunner]:
    torch.backends.cuda.matmul.allow_tf32 = False
    path: Path = tmp_path_factory.mktemp(request.param)
    reference = save_random_model(request.param, path)
    options = EngineOptions("float32", PAGE_SIZE, max_running_requests=8)
    return reference.to(CUDA), load_model_runner(path, options, lambda _: NUM_PAGES, CUDA)


@pytest.mark.parametrize("chunk", [10_000, 37, 1])
def test_they_are_those_of_transformers(
    pair: tuple[PreTrainedModel, ModelRunner], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, runner = pair
    monkeypatch.setattr(measuring, "BLOCK_VALUES", 50 * runner.config.vocab_size)
    prompt = prompt_of(150, runner.config.vocab_size)
    sampling = asking(prompt, 20, num_top=3, wanted=[5, 7])
    computed = ScoredPrompts(runner)
    [parts] = computed.parts([computed.sequence(prompt, sampling)], chunk)
    check(joined(parts), expected_logprobs(reference, prompt).cpu(), prompt, sampling)


def test_they_are_read_after_the_next_step_was_started(
    pair: tuple[PreTrainedModel, ModelRunner],
) -> None:
    """Chunks of a prompt beside an answer; nothing is read before the step behind it runs."""
    reference, runner = pair
    prompt = prompt_of(90, runner.config.vocab_size, seed=1)
    sampling = asking(prompt, 0, num_top=2)
    sequence = ScoredPrompts(runner).sequence(prompt, sampling)
    neighbour, pages = prompt_of(9, runner.config.vocab_size), list(range(150, 152))
    before = runner.start([Slice(neighbour, 0, pages, GREEDY)])
    parts: list[PromptLogprobs] = []
    tokens = []
    for i in range(3):
        chunk = sequence.next_slice(30, 1)
        single = Slice([UNKNOWN], 9 + i, pages, GREEDY, follows=0)
        step = runner.start([single, chunk], after=before)
        sampled = before.sampled()
        tokens.append(sampled[0].tokens[0] if sampled[0] else UNKNOWN)
        parts += [s.prompt_logprobs for s in sampled if s and s.prompt_logprobs]
        before = step
    parts += [s.prompt_logprobs for s in before.sampled() if s and s.prompt_logprobs]
    check(joined(parts), expected_logprobs(reference, prompt).cpu(), prompt, sampling)
    assert tokens == Sequences(runner).generate(neighbour, 3)
