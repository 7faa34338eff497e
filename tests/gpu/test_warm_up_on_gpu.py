"""After a warm-up on CUDA, steps of a mixed load compile and record nothing.

It ran on an H200 in a run that was cut before it told of every test.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from engine.steps.warm_up import SAMPLINGS, WarmUpLimits
from node.warm_up import warm_up
from tests.support.engine.driving import GREEDY, PAGE_SIZE, Sequences, prompt_of
from tests.support.models.families import save_random_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NUM_PAGES = 1000
LIMITS = WarmUpLimits(
    chunk_tokens=2048,
    max_running=16,
    page_size=PAGE_SIZE,
    num_pages=NUM_PAGES,
    context_length=4096,
)


@pytest.fixture(
    params=[
        ("bfloat16", "none"),
        ("float32", "none"),
        ("bfloat16", "int4"),
        ("bfloat16", "int8"),
        ("bfloat16", "fp8"),
    ],
    ids="-".join,
)
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> ModelRunner:
    save_random_model("llama3", tmp_path / "model")
    dtype, quantization = request.param
    options = EngineOptions(
        dtype,
        PAGE_SIZE,
        quantization=quantization,
        max_running_requests=LIMITS.max_running,
        compile_cache=str(tmp_path / "cache"),
    )
    return load_model_runner(tmp_path / "model", options, lambda _: NUM_PAGES, torch.device("cuda"))


def test_nothing_is_compiled_after_the_warm_up(
    runner: ModelRunner, caplog: pytest.LogCaptureFixture
) -> None:
    """No step of the warm-up fails, and those of serving need nothing more."""
    with caplog.at_level(logging.WARNING):
        warm_up(runner, LIMITS)
    # The random model has no tokenizer, which only grammars need.
    assert not [text for text in caplog.messages if "no tokenizer.json" not in text]
    assert runner.num_compiles > 0
    before = runner.num_compiles
    for length in (1, 15, 16, 17, 100, 700, 1500, 2047):
        Sequences(runner).generate(prompt_of(length, 100), 4)
    sequences = Sequences(runner)
    pages = sequences.pages(2000)
    for size in range(1, LIMITS.max_running + 1):
        singles = [Slice([5], 40 * (i + 1), pages, GREEDY) for i in range(size)]
        runner.run(singles)
        for length in (2, 300, 1500):
            chunk = Slice(prompt_of(length, 100), 32, pages, None)
            runner.run([chunk])  # nobody wants a token of it
            runner.run([chunk, *singles])
    for number, sampling in enumerate(SAMPLINGS.values()):
        replay = [5] * 9 if sampling.has_state else ()
        runner.run([Slice([5], 9, pages, sampling, sequence_id=number, replay=replay)])
    runner.copy_pages(pages[:3], pages[10:13])
    assert runner.num_compiles == before
