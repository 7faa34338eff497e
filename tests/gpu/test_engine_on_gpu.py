"""On CUDA the engine's tokens and logits are those of transformers on the same device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES, save_random_model
from test_against_transformers import PAGE_SIZE, Sequences, prompt_of
from transformers import PreTrainedModel

from engine.batch import Batch
from engine.build import EngineOptions, load_model_runner
from engine.request import Slice
from engine.runner import ModelRunner
from engine.sampler import sample
from protocol.sampling import Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GREEDY = Sampling(temperature=0.0)
CUDA = torch.device("cuda")


@pytest.fixture(scope="module", params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, ModelRunner]:
    torch.backends.cuda.matmul.allow_tf32 = False
    path: Path = tmp_path_factory.mktemp(str(request.param))
    reference = save_random_model(request.param, path)
    runner = load_model_runner(path, EngineOptions("float32", PAGE_SIZE), lambda _: 600, CUDA)
    return reference.to(CUDA), runner


@torch.inference_mode()
def logits_of(runner: ModelRunner, prompt: list[int]) -> torch.Tensor:
    pages = Sequences(runner).pages(len(prompt))
    batch = Batch.build([Slice(prompt, 0, pages, GREEDY)], PAGE_SIZE, CUDA)
    return runner.model(batch, runner.kv_cache, runner.attention)[0]


@torch.inference_mode()
def reference_tokens(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens], device=CUDA)).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 100, 700])
def test_logits_are_transformers(pair: tuple[PreTrainedModel, ModelRunner], length: int) -> None:
    reference, runner = pair
    prompt = prompt_of(length, reference.config.vocab_size)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt], device=CUDA)).logits[0, -1]
    difference = (logits_of(runner, prompt) - expected).abs().max()
    assert difference <= 1e-4 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("length", [1, 17, 700])
@pytest.mark.parametrize("chunk", [10_000, 37])
def test_greedy_tokens_are_transformers(
    pair: tuple[PreTrainedModel, ModelRunner], length: int, chunk: int
) -> None:
    reference, runner = pair
    prompt = prompt_of(length, reference.config.vocab_size)
    assert Sequences(runner).generate(prompt, 24, chunk) == reference_tokens(reference, prompt, 24)


def test_a_mixed_batch_changes_nothing(pair: tuple[PreTrainedModel, ModelRunner]) -> None:
    """A prompt, a chunk on a prefix and two single tokens in one step."""
    reference, runner = pair
    prompts = [prompt_of(n, reference.config.vocab_size) for n in (70, 50, 33, 5)]
    starts = [0, 31, 32, 4]
    sequences = Sequences(runner)
    pages = [sequences.pages(len(prompt)) for prompt in prompts]
    for prompt, start, table in zip(prompts, starts, pages, strict=True):
        if start:
            runner.run([Slice(prompt[:start], 0, table, None)])
    tokens = runner.run(
        [
            Slice(prompt[start:], start, table, GREEDY)
            for prompt, start, table in zip(prompts, starts, pages, strict=True)
        ]
    )
    assert tokens == [reference_tokens(reference, prompt, 1)[0] for prompt in prompts]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(dtype: str, tmp_path: Path) -> None:
    save_random_model("llama2", tmp_path)
    exact = load_model_runner(tmp_path, EngineOptions("float32", PAGE_SIZE), lambda _: 100, CUDA)
    half = load_model_runner(tmp_path, EngineOptions(dtype, PAGE_SIZE), lambda _: 100, CUDA)
    prompt = prompt_of(100, exact.config.vocab_size)
    expected, logits = logits_of(exact, prompt), logits_of(half, prompt)
    assert half.layout.dtype == dtype
    assert (logits - expected).norm() < 0.1 * expected.norm()
    assert all(0 <= t < exact.config.vocab_size for t in Sequences(half).generate(prompt, 8, 37))


def test_a_seed_draws_the_same_on_cpu_and_gpu() -> None:
    logits = 3 * torch.randn(64, 500, generator=torch.Generator().manual_seed(1))
    samplings = [Sampling(temperature=0.8, top_k=50, top_p=0.9, seed=i) for i in range(64)]
    on_gpu = sample(logits.to(CUDA), samplings, range(64)).tokens.cpu()
    assert torch.equal(on_gpu, sample(logits, samplings, range(64)).tokens)
