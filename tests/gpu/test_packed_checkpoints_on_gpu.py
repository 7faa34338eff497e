"""Checkpoints that other programs quantised answer on a GPU as their formats define."""

from __future__ import annotations

import pytest
import torch

from engine.build import load_model_runner
from engine.options import EngineOptions
from tests.support.engine.driving import PAGE_SIZE, Sequences
from tests.support.models.quantised import CHECKPOINTS, answers, checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_in_bfloat16_are_near_those_of_float32(name: str) -> None:
    """The largest logits are from 4 to 9. The last bit of an input in bfloat16 may decide to which
    number of FP8 it is rounded."""
    options = EngineOptions("bfloat16", PAGE_SIZE)
    device = torch.device("cuda", 0)
    runner = load_model_runner(checkpoint(name), options, lambda _: 60, device)
    for answer in answers(name):
        logits = Sequences(runner).logits(answer.prompt).float().cpu()
        spread = answer.logits.abs().max()
        tolerance = 0.15 if "fp8" in name else 0.05
        assert (logits - answer.logits).abs().max() <= tolerance * spread
