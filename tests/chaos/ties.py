"""Whether two answers differ only as floats are rounded: the model finds both tokens as likely."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from tests.chaos.questions import Question, Tokens

TIE = 1e-3
"""Logits closer than this may change places when a batch is computed in another shape."""


@torch.inference_mode()
def is_tie(
    reference: PreTrainedModel, question: Question, right: Tokens, other: Tokens, index: int
) -> bool:
    """Returns True if the token at `index` of a greedy answer is as likely as the right one. Drawn
    tokens are not looked at, as chance decides between them at no fixed place."""
    if question.kind not in ("greedy", "long prompt") or index >= min(len(right), len(other)):
        return False
    tokens = [*question.prompt, *right[:index]]
    logits = reference(torch.tensor([tokens])).logits[0, -1]
    gap = abs(float(logits[right[index]] - logits[other[index]]))
    print(
        f"a tie at token {index}: logits of {right[index]} and {other[index]} are {gap:.2g} apart"
    )
    return gap < TIE
