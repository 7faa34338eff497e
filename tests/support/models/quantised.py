"""The small quantised checkpoints in tests/data/quantised, and what they should compute."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "data" / "quantised"
CHECKPOINTS = sorted(file.parent.name for file in FOLDER.glob("*/expected.json"))
"""The names of all of them."""


@dataclass(frozen=True)
class Answer:
    """What a model makes of a prompt, computed in float32 by its format's definition."""

    prompt: list[int]
    tokens: list[int]
    """Greedy ones, none of them close to a tie."""
    logits: Tensor
    """[vocab], behind the last token of the prompt."""


def checkpoint(name: str) -> Path:
    """Returns the directory of a checkpoint."""
    return FOLDER / name


def answers(name: str) -> list[Answer]:
    """Returns the answers that a checkpoint is known to give."""
    text = (FOLDER / name / "expected.json").read_text(encoding="utf-8")
    return [
        Answer(answer["prompt"], answer["tokens"], torch.tensor(answer["logits"]))
        for answer in json.loads(text)["answers"]
    ]


def tolerance(name: str) -> float:
    """Returns by how much logits, of which the largest are about 10, may differ. The last bit of an
    input may decide to which number of FP8 it is rounded."""
    return 0.1 if "fp8" in name else 1e-3
