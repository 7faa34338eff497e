"""The engine's tokens and logits are transformers', for every family, however a prompt is cut."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from families import FAMILIES, SERVED_LENGTHS, prompt_lengths, save_random_model
from transformers import PreTrainedModel

from engine.batch import Batch
from engine.build import EngineOptions, load_model_runner
from engine.request import Slice
from engine.runner import ModelRunner
from protocol.sampling import Sampling

GREEDY = Sampling(temperature=0.0)
PAGE_SIZE = 16
CPU = torch.device("cpu")


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


class Sequences:
    """Drives a runner as a scheduler would, on scattered pages."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.free = list(range(runner.kv_cache.num_pages))
        random.Random(5).shuffle(self.free)

    def pages(self, num_tokens: int) -> list[int]:
        return [self.free.pop() for _ in range(-(-num_tokens // PAGE_SIZE))]

    def generate(self, prompt: list[int], count: int, chunk: int = 10_000) -> list[int]:
        tokens, pages = list(prompt), self.pages(len(prompt) + count)
        computed = 0
        while len(tokens) < len(prompt) + count:
            part = tokens[computed : computed + chunk]
            is_last = computed + len(part) == len(tokens)
            [token] = self.runner.run([Slice(part, computed, pages, GREEDY if is_last else None)])
            computed += len(part)
            if token is not None:
                tokens.append(token)
        return tokens[len(prompt) :]


def prompt_of(length: int, vocab_size: int, seed: int = 0) -> list[int]:
    chance = random.Random(f"{length}/{seed}")
    return [chance.randrange(3, vocab_size) for _ in range(length)]


@torch.inference_mode()
def reference_tokens(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    output = model.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return output[0, len(prompt) :].tolist()


def test_logits_are_transformers(family: str, pair: tuple[PreTrainedModel, ModelRunner]) -> None:
    """Within 1e-4, of logits whose largest is about 5."""
    reference, runner = pair
    sequences = Sequences(runner)
    for length in prompt_lengths(family, [1, 2, 16, 17, 100, 400], num_answer_tokens=0):
        prompt = prompt_of(length, reference.config.vocab_size)
        pages = sequences.pages(length)
        with torch.inference_mode():
            expected = reference(torch.tensor([prompt])).logits[0, -1]
            batch = Batch.build([Slice(prompt, 0, pages, GREEDY)], PAGE_SIZE, CPU)
            logits = runner.model(batch, runner.kv_cache, runner.attention)[0]
        assert (logits - expected).abs().max() <= 1e-4, f"{length} tokens"


def test_greedy_tokens_are_transformers(
    family: str, pair: tuple[PreTrainedModel, ModelRunner]
) -> None:
    """Whether a prompt is computed at once or in chunks."""
    reference, runner = pair
    for length in prompt_lengths(family, [1, 17, 130], num_answer_tokens=12):
        prompt = prompt_of(length, reference.config.vocab_size)
        expected = reference_tokens(reference, prompt, 12)
        for chunk in (10_000, 37):
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
