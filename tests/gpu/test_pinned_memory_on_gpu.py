"""While a node serves on CUDA, nothing asks the driver for pinned memory, which might wait for a
message that is not here yet; and it takes no memory of other GPUs than its own.

No GPU has run the latter yet.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.options import EngineOptions
from kvtransfer.pages.copy_streams import HIGH_PRIORITY
from kvtransfer.pages.staging import PageRows
from tests.support.engine.driving import GREEDY, PAGE_SIZE, prompt_of
from tests.support.models.families import save_random_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NUM_PAGES, NUM_STREAMS, LONG = 256, 16, 3000


def num_pinned() -> int:
    """How many blocks of pinned memory this process has got from the driver so far."""
    return int(torch.cuda.host_memory_stats()["num_host_alloc"])


def test_no_step_and_no_transfer_pins_memory(tmp_path: Path) -> None:
    save_random_model("llama3", tmp_path)
    options = EngineOptions("bfloat16", PAGE_SIZE, max_running_requests=NUM_STREAMS)
    runner = load_model_runner(tmp_path, options, lambda _: NUM_PAGES, torch.device("cuda"))
    before = num_pinned()
    assert before > 0
    pages = list(range(NUM_PAGES))
    runner.run([Slice(prompt_of(500, 100), 0, pages, GREEDY)])
    for context in (20, 300, LONG):  # a longer row makes the table of all of them wider
        for size in (1, 5, NUM_STREAMS):
            singles = [Slice([5], 19, pages, GREEDY)] * (size - 1)
            runner.run([Slice([5], context - 1, pages, GREEDY), *singles])
    rows = PageRows(runner.kv_cache.storage, runner.layout, range(runner.layout.num_kv_heads))
    with rows.on_stream():
        assert torch.cuda.current_stream().priority == HIGH_PRIORITY
        for _ in range(10):
            rows.index(np.arange(NUM_PAGES, dtype=np.int64))
    rows.finish_copies()
    assert num_pinned() == before


COPYING_ON_THE_SECOND = """
import threading, torch
from kvtransfer.pages.staging import PageRows
from protocol.layout import KVLayout
layout = KVLayout(16, 2, 2, 64, "bfloat16")
pool = torch.zeros(2, 4, layout.layer_page_bytes, dtype=torch.uint8, device="cuda:1")
rows = PageRows(pool, layout, range(2))
def copy():
    with rows.on_stream():
        pool.add_(1)
thread = threading.Thread(target=copy)
thread.start()
thread.join()
print(int(pool.sum()) == pool.numel(), torch._C._cuda_hasPrimaryContext(0))
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices")
def test_links_of_the_second_gpu_take_nothing_of_the_first() -> None:
    """A context, made by whatever makes a GPU current, takes half a gigabyte."""
    command = [sys.executable, "-c", COPYING_ON_THE_SECOND]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["True", "False"], ended.stderr
