"""With `--deterministic`, a token's logits are the same bits whatever else is computed with it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from tests.support.engine.cut_sequence import LENGTH, Steps
from tests.support.engine.driving import CPU, PAGE_SIZE, prompt_of
from tests.support.models.families import save_random_model

MakeRunner = Callable[[str, bool], ModelRunner]


@pytest.fixture(scope="module")
def make_runner(tmp_path_factory: pytest.TempPathFactory) -> MakeRunner:
    torch.set_num_threads(1)
    runners: dict[tuple[str, bool], ModelRunner] = {}

    def make(family: str, deterministic: bool) -> ModelRunner:
        if (family, deterministic) not in runners:
            path = tmp_path_factory.mktemp(family)
            save_random_model(family, path)
            options = EngineOptions("float32", PAGE_SIZE, deterministic=deterministic)
            runners[family, deterministic] = load_model_runner(path, options, lambda _: 400, CPU)
        return runners[family, deterministic]

    return make


FAMILIES = ["llama3", "gemma2", "qwen3", "mixtral"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(6))
def test_cuts_and_company(make_runner: MakeRunner, family: str, seed: int) -> None:
    """A prompt is computed alone and whole, in chunks of any size, and with its last chunk in a
    batch of others."""
    runner = make_runner(family, True)
    tokens = prompt_of(LENGTH, 199)
    expected = Steps(runner, tokens).after([0])
    cuts = random.Random(seed).sample(range(1, LENGTH), k=seed)
    assert torch.equal(Steps(runner, tokens).after([0, *sorted(cuts)]), expected)
    steps, last = Steps(runner, tokens), max(cuts, default=0)
    if last:
        steps.logits(0, last)
    others = steps.others(seed)
    assert torch.equal(steps.logits(last, LENGTH, others, seed % (len(others) + 1)), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoded_is_prefilled(make_runner: MakeRunner, family: str) -> None:
    """Logits after every position are the same as the last row of a prompt and as a decode step."""
    runner = make_runner(family, True)
    tokens = prompt_of(140, 199)
    decoded = Steps(runner, tokens)
    decoded.logits(0, 100)
    for end in range(101, 141):
        whole = Steps(runner, tokens[:end]).after([0])
        assert torch.equal(decoded.logits(end - 1, end), whole), end


def test_a_prefix_that_another_request_left(make_runner: MakeRunner) -> None:
    """The pages of the first 128 tokens are those of a request that went on differently."""
    runner = make_runner("llama3", True)
    tokens = prompt_of(LENGTH, 199)
    first = Steps(runner, tokens[:128] + prompt_of(20, 199, seed=3))
    first.after([0, 50, 77])
    second = Steps(runner, tokens)
    second.pages = first.pages[: 128 // PAGE_SIZE] + second.pages[128 // PAGE_SIZE :]
    assert torch.equal(second.logits(128, LENGTH), Steps(runner, tokens).after([0]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_common", [1, 10, PAGE_SIZE - 1])
def test_a_page_that_was_copied_and_only_begins_alike(
    make_runner: MakeRunner, family: str, num_common: int
) -> None:
    """Behind 64 tokens of another request's pages, the first ones of its next page."""
    runner = make_runner(family, True)
    tokens, num_shared = prompt_of(LENGTH, 199), 64
    first = Steps(runner, tokens[: num_shared + num_common] + prompt_of(20, 199, seed=3))
    first.after([0])
    second = Steps(runner, tokens)
    page = num_shared // PAGE_SIZE
    (copy, *_) = set(range(runner.kv_cache.num_pages)) - {*first.pages, *second.pages}
    runner.copy_pages([first.pages[page]], [copy])
    second.pages = [*first.pages[:page], copy, *second.pages[page + 1 :]]
    rest = second.logits(num_shared + num_common, LENGTH)
    assert torch.equal(rest, Steps(runner, tokens).after([0]))


def test_without_it_bits_differ(make_runner: MakeRunner) -> None:
    """Without the flag the tests above would fail, so they do prove something."""
    runner = make_runner("llama3", False)
    tokens = prompt_of(LENGTH, 199)
    expected = Steps(runner, tokens).after([0])
    cut = Steps(runner, tokens).after([0, 70, 149])
    assert not torch.equal(cut, expected)
    torch.testing.assert_close(cut, expected, atol=1e-4, rtol=1e-4)


def test_close_to_what_it_is_without(make_runner: MakeRunner) -> None:
    tokens = prompt_of(LENGTH, 199)
    for family in FAMILIES:
        exact = Steps(make_runner(family, True), tokens).after([0])
        usual = Steps(make_runner(family, False), tokens).after([0])
        torch.testing.assert_close(exact, usual, atol=1e-4, rtol=1e-4)


def test_such_nodes_share_pages_with_none_of_the_others(make_runner: MakeRunner) -> None:
    """The KV of other nodes has other bits, so the fingerprints differ."""
    assert make_runner("llama3", True).fingerprint != make_runner("llama3", False).fingerprint
