"""The tokens that transformers generates, which ours are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from transformers import PreTrainedModel


def reference_tokens(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    return _generated(model, tuple(prompt), count)


@lru_cache(maxsize=8)  # so that what a family's tests have in common is asked once
@torch.inference_mode()
def _generated(model: PreTrainedModel, prompt: tuple[int, ...], count: int) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return output[0, len(prompt) :].tolist()
