"""What a step says while it runs: which layers have their K and V in the pool."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from protocol.sampling import Sampling
from tests.support.engine.driving import CPU
from tests.support.models.checkpoints import checkpoint, save

PAGE_SIZE = 4
PAGES = [2, 0]


@pytest.fixture
def runner(tmp_path: Path) -> ModelRunner:
    torch.set_num_threads(1)
    save(tmp_path, checkpoint())
    return load_model_runner(tmp_path, EngineOptions("float32", PAGE_SIZE), lambda _: 3, CPU)


def test_layers_are_told_as_they_are_written_before_their_feed_forward(
    runner: ModelRunner,
) -> None:
    told: list[str] = []
    pool = runner.kv_cache.pool  # [layers, pages, 2, page_size, kv_heads, head_dim]
    pool.fill_(torch.nan)

    def on_layer(num_layers: int) -> None:
        told.append(f"layer {num_layers}")
        assert not pool[:num_layers, PAGES].isnan().any()
        assert pool[num_layers:].isnan().all()

    for layer in runner.model.layers:
        layer.feed_forward.register_forward_pre_hook(lambda *_: told.append("feed-forward"))
    part = Slice([1, 2, 3, 4, 5, 6, 7, 8], 0, PAGES, Sampling(temperature=0.0))
    tokens = runner.run([part], on_layer)
    assert told == ["layer 1", "feed-forward", "layer 2", "feed-forward"]
    assert tokens == runner.run([part])
