"""Deterministic mode on CUDA: the same bits however a sequence is cut and whatever is beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.build import load_model_runner
from engine.options import EngineOptions
from tests.support.engine.cut_sequence import LENGTH, Steps
from tests.support.engine.driving import PAGE_SIZE, prompt_of
from tests.support.models.families import save_random_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama3", "gemma2", "mixtral"])
def test_cuts_and_company(family: str, dtype: str, tmp_path: Path) -> None:
    save_random_model(family, tmp_path)
    options = EngineOptions(dtype, PAGE_SIZE, deterministic=True)
    runner = load_model_runner(tmp_path, options, lambda _: 400, torch.device("cuda"))
    tokens = prompt_of(LENGTH, 199)
    expected = Steps(runner, tokens).after([0])
    for cuts in ([0, 1], [0, 70, 149], [0, 16, 140]):
        assert torch.equal(Steps(runner, tokens).after(cuts), expected)
    for seed in range(5):
        steps = Steps(runner, tokens)
        steps.logits(0, 100)
        others = steps.others(seed)
        assert torch.equal(steps.logits(100, LENGTH, others, seed % (len(others) + 1)), expected)
