"""On CUDA a copied page is there for the step behind it, however busy the device is before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from kvtransfer.links.layer_stream import event_after
from tests.support.engine.driving import GREEDY, PAGE_SIZE, prompt_of
from tests.support.models.families import save_random_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
VOCAB_SIZE = 199
NUM_SHARED = 42
"""Two pages, and ten tokens of the next one."""
PAGES = {"first": [3, 9, 5, 11], "second": [3, 9, 6, 2], "alone": [20, 21, 22, 23]}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRunner]:
    path: Path = tmp_path_factory.mktemp("llama3")
    save_random_model("llama3", path)
    options = EngineOptions("float32", PAGE_SIZE, deterministic=True)
    yield load_model_runner(path, options, lambda _: 64, CUDA)


def keep_busy() -> None:
    """Gives the device work for a while, so that whatever does not wait is too early."""
    matrix = torch.randn(4096, 4096, device=CUDA)
    for _ in range(20):
        matrix = torch.tanh(matrix @ matrix)


def test_a_prompt_goes_on_behind_a_copied_beginning(runner: ModelRunner) -> None:
    tokens = prompt_of(60, VOCAB_SIZE)
    other = tokens[:NUM_SHARED] + prompt_of(18, VOCAB_SIZE, seed=3)
    expected = runner.start([Slice(tokens, 0, PAGES["alone"], GREEDY)]).sampled()
    keep_busy()
    runner.start([Slice(other, 0, PAGES["first"], GREEDY)])
    runner.copy_pages([PAGES["first"][2]], [PAGES["second"][2]])
    rest = Slice(tokens[NUM_SHARED:], NUM_SHARED, PAGES["second"], GREEDY)
    assert runner.start([rest]).sampled() == expected
    pool = runner.kv_cache.pool
    in_page = NUM_SHARED % PAGE_SIZE
    alone, copied = (pool[:, PAGES[which][2], :, :in_page] for which in ("alone", "second"))
    assert torch.equal(alone, copied)


def test_what_arrives_in_a_page_waits_until_the_page_was_copied(runner: ModelRunner) -> None:
    """As `Arrivals` does: a page that is expected is written behind the event of that moment."""
    pool, (source, destination) = runner.kv_cache.pool, (40, 41)
    runner.copy_pages([source], [destination])  # takes the pinned memory that the next one uses
    keep_busy()
    pool[:, source] = 1.0
    torch.cuda.synchronize()
    keep_busy()
    runner.copy_pages([source], [destination])
    free = event_after(pool)
    assert free is not None and not free.query(), "the device has not come so far"
    arriving = torch.cuda.Stream(CUDA)
    with torch.cuda.stream(arriving):
        arriving.wait_event(free)
        pool[:, source] = 2.0
    torch.cuda.synchronize()
    assert torch.all(pool[:, destination] == 1.0) and torch.all(pool[:, source] == 2.0)
