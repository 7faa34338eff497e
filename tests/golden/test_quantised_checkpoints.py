"""Checkpoints that other programs quantised answer as their formats define, in every format and
family, however a prompt is cut and over however many ranks a model is split."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest
import torch

from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.parallel import MeetingPoint
from engine.steps.runner import ModelRunner
from tests.support.engine.driving import CPU, GREEDY, PAGE_SIZE, Sequences
from tests.support.models.quantised import CHECKPOINTS, answers, checkpoint, tolerance
from tests.support.processes import ranks

FORMATS = ("awq-", "gptq-", "ct-w4", "ct-w8", "ct-fp8", "fp8-block", "fp8-tensor", "gguf-")
SPLIT = (
    "awq-llama",
    "ct-fp8-static-llama",
    "ct-w4a16-mixtral",
    "fp8-block-qwen3",
    "fp8-block-qwen3-moe",
    "gguf-every-block-llama",
    "gguf-k-llama",
    "gptq-order-llama",
    "gptq-rows-phi3",
)
"""Those that are split over ranks in every run: each has its own way to be cut."""


@pytest.fixture(scope="module", params=CHECKPOINTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def runner(name: str) -> ModelRunner:
    torch.set_num_threads(1)
    options = EngineOptions("float32", PAGE_SIZE)
    return load_model_runner(checkpoint(name), options, lambda _: 60, CPU)


@pytest.fixture(scope="module")
def two_processes() -> Iterator[list[Connection]]:
    with ranks.rank_processes(2) as connections:
        yield connections


@pytest.fixture(scope="module")
def four_processes() -> Iterator[list[Connection]]:
    with ranks.rank_processes(4) as connections:
        yield connections


def test_every_format_is_there() -> None:
    for kind in FORMATS:
        assert any(name.startswith(kind) for name in CHECKPOINTS), kind


def test_logits_are_as_defined(name: str, runner: ModelRunner) -> None:
    for answer in answers(name):
        logits = Sequences(runner).logits(answer.prompt)
        assert (logits - answer.logits).abs().max() <= tolerance(name)


def test_logits_without_native_kernels_are_as_defined(name: str) -> None:
    options = EngineOptions("float32", PAGE_SIZE, no_native_kernels=True)
    plain = load_model_runner(checkpoint(name), options, lambda _: 60, CPU)
    for answer in answers(name):
        logits = Sequences(plain).logits(answer.prompt)
        assert (logits - answer.logits).abs().max() <= tolerance(name)


@pytest.mark.parametrize("chunk", [10_000, 7])
def test_greedy_tokens_are_as_defined(name: str, runner: ModelRunner, chunk: int) -> None:
    for answer in answers(name):
        assert Sequences(runner).generate(answer.prompt, len(answer.tokens), chunk) == answer.tokens


def test_tokens_are_the_same_behind_pages_of_another_request(
    name: str, runner: ModelRunner
) -> None:
    for answer in answers(name):
        sequences = Sequences(runner)
        owned = sequences.pages(PAGE_SIZE)
        shared = answer.prompt[:PAGE_SIZE]
        runner.run([Slice(shared, 0, owned, None)])
        tokens = list(answer.prompt)
        pages = owned + sequences.pages(len(tokens) + len(answer.tokens) - PAGE_SIZE)
        computed = PAGE_SIZE
        while len(tokens) < len(answer.prompt) + len(answer.tokens):
            [token] = runner.run([Slice(tokens[computed:], computed, pages, GREEDY)])
            assert token is not None
            computed = len(tokens)
            tokens.append(token)
        assert tokens[len(answer.prompt) :] == answer.tokens


@pytest.mark.parametrize("split", SPLIT)
def test_two_ranks_answer_as_one(split: str, two_processes: list[Connection]) -> None:
    expect_of_ranks(split, two_processes)


@pytest.mark.verify
@pytest.mark.parametrize("split", sorted({*CHECKPOINTS} - {*SPLIT}))
def test_two_ranks_answer_as_one_for_every_checkpoint(
    split: str, two_processes: list[Connection]
) -> None:
    expect_of_ranks(split, two_processes)


@pytest.mark.verify
@pytest.mark.parametrize("split", CHECKPOINTS)
def test_four_ranks_answer_as_one(split: str, four_processes: list[Connection]) -> None:
    """Models of two KV heads hold each of them twice."""
    expect_of_ranks(split, four_processes)


def expect_of_ranks(name: str, processes: list[Connection]) -> None:
    expected = answers(name)
    prompts = [answer.prompt for answer in expected]
    meeting_point = MeetingPoint("127.0.0.1", ranks.ANSWER_S)  # it ends with its last name
    count = len(expected[0].tokens)
    job = ranks.Job(
        checkpoint(name), ranks.options(), len(processes), meeting_point.address, prompts, count
    )
    for found in ranks.run(processes, job):
        assert found.refusal == ""
        assert found.tokens == [answer.tokens for answer in expected]
        assert (found.logits - expected[-1].logits).abs().max() <= tolerance(name)


def test_pages_take_the_scales_that_a_quantised_checkpoint_brings() -> None:
    """They pass through what repacks its weights, and rounding by them changes logits a little."""
    path = checkpoint("ct-fp8-kv-scales-llama")
    options = EngineOptions("float32", PAGE_SIZE, kv_cache_dtype="fp8_e4m3")
    runner = load_model_runner(path, options, lambda _: 60, CPU)
    assert (runner.layout.dtype, runner.layout.scales) == ("float8_e4m3fn", "static")
    for answer in answers(path.name):
        difference = (Sequences(runner).logits(answer.prompt) - answer.logits).abs().max()
        assert 0 < difference < 1.0
