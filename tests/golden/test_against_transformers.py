"""The engine's tokens and logits are transformers', for every family, however a prompt is cut."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from families import FAMILIES, save_random_model
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
    return reference, load_model_runner(
        path, EngineOptions("float32", PAGE_SIZE), lambda _: 600, CPU
    )


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


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 100, 700])
def test_logits_are_transformers(pair: tuple[PreTrainedModel, ModelRunner], length: int) -> None:
    reference, runner = pair
    prompt = prompt_of(length, reference.config.vocab_size)
    pages = Sequences(runner).pages(length)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0, -1]
        batch = Batch.build([Slice(prompt, 0, pages, GREEDY)], PAGE_SIZE, CPU)
        logits = runner.model(batch, runner.kv_cache, runner.attention)[0]
    assert (logits - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("length", [1, 16, 17, 100, 700])
@pytest.mark.parametrize("chunk", [10_000, 37])
def test_greedy_tokens_are_transformers(
    pair: tuple[PreTrainedModel, ModelRunner], length: int, chunk: int
) -> None:
    reference, runner = pair
    prompt = prompt_of(length, reference.config.vocab_size)
    expected = reference_tokens(reference, prompt, 24)
    assert Sequences(runner).generate(prompt, 24, chunk) == expected


def test_mixed_batches_change_nothing(pair: tuple[PreTrainedModel, ModelRunner]) -> None:
    """Prompts that start, prompts in chunks and answers share every step."""
    reference, runner = pair
    prompts = [prompt_of(n, reference.config.vocab_size) for n in (1, 5, 33, 64, 150)]
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
def test_a_prompt_of_3000_tokens(long_family: str, tmp_path: Path) -> None:
    reference = save_random_model(long_family, tmp_path)
    runner = load_model_runner(tmp_path, EngineOptions("float32", PAGE_SIZE), lambda _: 200, CPU)
    prompt = prompt_of(3000, reference.config.vocab_size)
    expected = reference_tokens(reference, prompt, 8)
    assert Sequences(runner).generate(prompt, 8, chunk=1024) == expected
