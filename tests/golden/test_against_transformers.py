"""The engine's tokens and logits are transformers', for every family, however a prompt is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from tests.support.engine.driving import CPU, GREEDY, PAGE_SIZE, Sequences, prompt_of
from tests.support.models.families import (
    FAMILIES,
    SERVED_LENGTHS,
    prompt_lengths,
    save_random_model,
)
from tests.support.models.reference import reference_tokens


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pair(
    family: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, ModelRunner]:
    torch.set_num_threads(1)
    path: Path = tmp_path_factory.mktemp(family)
    reference = save_random_model(family, path)
    options = EngineOptions("float32", PAGE_SIZE, context_length=SERVED_LENGTHS.get(family, 0))
    return reference, load_model_runner(path, options, lambda _: 200, CPU)


def test_logits_are_transformers(family: str, pair: tuple[PreTrainedModel, ModelRunner]) -> None:
    """Logits whose largest is about 5 differ by no more than 1e-4."""
    reference, runner = pair
    sequences = Sequences(runner)
    for length in prompt_lengths(family, [1, 2, 16, 17, 100, 400], num_answer_tokens=0):
        prompt = prompt_of(length, reference.config.vocab_size)
        with torch.inference_mode():
            expected = reference(torch.tensor([prompt])).logits[0, -1]
        assert (sequences.logits(prompt) - expected).abs().max() <= 1e-4, f"{length} tokens"


def test_greedy_tokens_are_transformers(
    family: str, pair: tuple[PreTrainedModel, ModelRunner]
) -> None:
    """Tokens are the same whether a prompt is computed at once or in chunks."""
    reference, runner = pair
    for length in prompt_lengths(family, [1, 33, 150], num_answer_tokens=12):
        prompt = prompt_of(length, reference.config.vocab_size)
        expected = reference_tokens(reference, prompt, 12)
        for chunk in (10_000, 37) if length > 37 else (10_000,):
            assert Sequences(runner).generate(prompt, 12, chunk) == expected, (length, chunk)


def test_mixed_batches_change_nothing(
    family: str, pair: tuple[PreTrainedModel, ModelRunner]
) -> None:
    """Prompts that start, prompts in chunks and answers share every step."""
    reference, runner = pair
    lengths = prompt_lengths(family, [1, 5, 33, 66, 150], num_answer_tokens=12)
    prompts = [prompt_of(n, reference.config.vocab_size) for n in lengths]
    sequences = Sequences(runner)
    pages = [sequences.pages(len(p) + 12) for p in prompts]
    tokens, computed = [list(p) for p in prompts], [0] * len(prompts)
    for step in range(40):
        slices, owners = [], []
        for i, prompt in enumerate(prompts):
            left = len(tokens[i]) - computed[i]
            if step < 2 * i or len(tokens[i]) >= len(prompt) + 12:
                continue
            part = tokens[i][computed[i] : computed[i] + min(left, 29)]
            sampling = GREEDY if len(part) == left else None
            slices.append(Slice(part, computed[i], pages[i], sampling))
            owners.append(i)
        if not slices:
            break
        for i, part, token in zip(owners, slices, runner.run(slices), strict=True):
            computed[i] += len(part.token_ids)
            if token is not None:
                tokens[i].append(token)
    for prompt, one in zip(prompts, tokens, strict=True):
        assert one[len(prompt) :] == reference_tokens(reference, prompt, 12)


@pytest.mark.parametrize("long_family", ["llama2", "mistral"])
def test_a_long_prompt(long_family: str, tmp_path: Path) -> None:
    reference = save_random_model(long_family, tmp_path)
    options = EngineOptions("float32", PAGE_SIZE)
    runner = load_model_runner(tmp_path, options, lambda _: 200, CPU)
    prompt = prompt_of(1500, reference.config.vocab_size)
    expected = reference_tokens(reference, prompt, 8)
    assert Sequences(runner).generate(prompt, 8, chunk=600) == expected
