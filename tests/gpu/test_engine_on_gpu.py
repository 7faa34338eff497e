"""On CUDA the engine's tokens and logits are those of transformers on the same device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from engine.batches.sequence import UNKNOWN, Slice
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.sampling.sampler import sample
from engine.steps.runner import ModelRunner
from protocol.sampling import Sampling
from tests.support.engine.driving import PAGE_SIZE, Sequences, prompt_of
from tests.support.models.families import (
    FAMILIES,
    ORIGINAL_RANGE,
    SERVED_LENGTHS,
    prompt_lengths,
    save_random_model,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GREEDY = Sampling(temperature=0.0)
CUDA = torch.device("cuda")
NUM_PAGES = 400


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pair(
    family: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, ModelRunner]:
    torch.backends.cuda.matmul.allow_tf32 = False
    path: Path = tmp_path_factory.mktemp(family)
    reference = save_random_model(family, path)
    options = EngineOptions(
        "float32",
        PAGE_SIZE,
        context_length=SERVED_LENGTHS.get(family, 0),
        max_running_requests=8,
    )
    return reference.to(CUDA), load_model_runner(path, options, lambda _: NUM_PAGES, CUDA)


@torch.inference_mode()
def reference_tokens(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens], device=CUDA)).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def longer(family: str, *lengths: int) -> list[int]:
    """Returns lengths so large that prompts reach beyond the range in which transformers would
    rotate otherwise."""
    return [n + ORIGINAL_RANGE * (family == "phi4-mini") for n in lengths]


def test_logits_are_transformers(family: str, pair: tuple[PreTrainedModel, ModelRunner]) -> None:
    """Logits whose largest is about 5 differ by no more than 2e-4: products round otherwise than on
    a CPU."""
    reference, runner = pair
    sequences = Sequences(runner)
    for length in prompt_lengths(family, [1, 2, 16, 17, 100, 400], num_answer_tokens=0):
        prompt = prompt_of(length, reference.config.vocab_size)
        with torch.inference_mode():
            expected = reference(torch.tensor([prompt], device=CUDA)).logits[0, -1]
        assert (sequences.logits(prompt) - expected).abs().max() <= 2e-4, f"{length} tokens"


@pytest.mark.parametrize("chunk", [10_000, 37])
def test_greedy_tokens_are_transformers(
    family: str, pair: tuple[PreTrainedModel, ModelRunner], chunk: int
) -> None:
    """Kernels compute the prompts, and graphs the answers."""
    reference, runner = pair
    for length in prompt_lengths(family, [1, 17, 300], num_answer_tokens=12):
        prompt = prompt_of(length, reference.config.vocab_size)
        expected = reference_tokens(reference, prompt, 12)
        assert Sequences(runner).generate(prompt, 12, chunk) == expected


def test_a_mixed_batch_changes_nothing(
    family: str, pair: tuple[PreTrainedModel, ModelRunner]
) -> None:
    """A prompt, a chunk on a prefix and two single tokens share a step."""
    reference, runner = pair
    prompts = [prompt_of(n, reference.config.vocab_size) for n in longer(family, 60, 50, 33, 5)]
    starts = [0, *(len(prompt) - n for prompt, n in zip(prompts[1:], (19, 1, 1), strict=True))]
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


def test_steps_that_follow_unread_tokens(
    family: str, pair: tuple[PreTrainedModel, ModelRunner]
) -> None:
    """Two steps are under way for three answers. One answer leaves in the middle, so that rows
    move."""
    reference, runner = pair
    prompts = [prompt_of(n, reference.config.vocab_size) for n in longer(family, 9, 30, 17)]
    sequences = Sequences(runner)
    pages = [sequences.pages(len(prompt) + 8) for prompt in prompts]
    answers: list[list[int]] = [[], [], []]
    step = runner.start(
        [Slice(p, 0, table, GREEDY) for p, table in zip(prompts, pages, strict=True)]
    )
    here = [0, 1, 2]
    for i in range(6):
        going_on = [n for n in here if i < 3 or n != 1]
        slices = [
            Slice([UNKNOWN], len(prompts[n]) + i, pages[n], GREEDY, follows=here.index(n))
            for n in going_on
        ]
        following = runner.start(slices, after=step)
        for n, sampled in zip(here, step.sampled(), strict=True):
            assert sampled is not None
            answers[n].append(sampled.tokens[0])
        step, here = following, going_on
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer == reference_tokens(reference, prompt, len(answer))
    assert [len(answer) for answer in answers] == [6, 4, 6]


def test_penalties_that_follow_unread_tokens(
    family: str, pair: tuple[PreTrainedModel, ModelRunner]
) -> None:
    """The counts are fed on the device; the reference brings the whole history to every step."""
    _, runner = pair
    (length,) = longer(family, 30)
    prompt = prompt_of(length, runner.config.vocab_size)
    sampling = Sampling(
        temperature=0.0,
        frequency_penalty=1.0,
        presence_penalty=-0.5,
        repetition_penalty=1.3,
        prompt_length=length,
    )
    sequences = Sequences(runner)
    strict, table = list(prompt), sequences.pages(length + 8)
    for sequence_id in range(8):
        part = Slice(strict, 0, table, sampling, sequence_id=sequence_id)
        (token,) = runner.run([part])
        assert token is not None
        strict.append(token)
        runner.end_sequence(sequence_id)
    ahead, table = list(prompt), sequences.pages(length + 8)
    step = runner.start([Slice(prompt, 0, table, sampling, sequence_id=8)])
    for i in range(7):
        part = Slice([UNKNOWN], length + i, table, sampling, follows=0, sequence_id=8)
        following = runner.start([part], after=step)
        ahead += [token for s in step.sampled() if s is not None for token in s.tokens]
        step = following
    ahead += [token for s in step.sampled() if s is not None for token in s.tokens]
    runner.end_sequence(8)
    assert ahead == strict
    assert len(runner.states) == 0


def test_a_chunk_that_samples_nothing_has_an_end(
    family: str, pair: tuple[PreTrainedModel, ModelRunner]
) -> None:
    """The step is not over when it is launched, and the first of its shape is said to compile."""
    _, runner = pair
    (length,) = longer(family, 40)
    prompt = prompt_of(length, runner.config.vocab_size)
    table = Sequences(runner).pages(length)
    for _ in range(2):
        step = runner.start([Slice(prompt, 0, table, None)])
        assert step.ended is not None
        assert step.sampled() == [None]
        assert step.ended.query()
    assert not step.has_compiled, "the second one"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("backend", ["auto", "triton", "torch"])
@pytest.mark.parametrize("half_family", ["llama3", "gemma2", "qwen3-moe"])
def test_half_precision_stays_near_float32(
    dtype: str, backend: str, half_family: str, tmp_path: Path
) -> None:
    save_random_model(half_family, tmp_path)
    exact, half = (
        load_model_runner(
            tmp_path,
            EngineOptions(name, PAGE_SIZE, attention_backend=attention, max_running_requests=4),
            lambda _: 100,
            CUDA,
        )
        for name, attention in (("float32", "auto"), (dtype, backend))
    )
    prompt = prompt_of(100, exact.config.vocab_size)
    expected, logits = Sequences(exact).logits(prompt), Sequences(half).logits(prompt)
    assert half.layout.dtype == dtype
    assert (logits - expected).norm() < 0.1 * expected.norm()
    assert all(0 <= t < exact.config.vocab_size for t in Sequences(half).generate(prompt, 8, 37))


def test_a_seed_draws_the_same_on_cpu_and_gpu() -> None:
    logits = 3 * torch.randn(64, 500, generator=torch.Generator().manual_seed(1))
    samplings = [Sampling(temperature=0.8, top_k=50, top_p=0.9, seed=i) for i in range(64)]
    on_gpu = sample(logits.to(CUDA), samplings, range(64)).tokens.cpu()
    assert torch.equal(on_gpu, sample(logits, samplings, range(64)).tokens)
