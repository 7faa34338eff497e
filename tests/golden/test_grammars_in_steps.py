"""Grammars in steps that run ahead: one that was started before the last one's tokens were known
samples what it would have sampled later. A CPU does not run ahead, but can be made to."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from engine.batches.sequence import UNKNOWN, Slice
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.sampling.grammar_masks import TokenMasks
from engine.steps.runner import ModelRunner
from infra.models import EMBEDDED
from protocol.sampling import Sampling
from tests.support.engine.native import compiled
from tests.support.models.grammars import END, compiler, tokenizer

NEEDS_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PAGE_SIZE = 64
PROMPT = list(range(20, 40))
FORCED = r"(begin|end) of the long fixed text: \d{3}; and more of it: [ab]{3}"


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def runner(request: pytest.FixtureRequest) -> ModelRunner:
    options = EngineOptions("float32", PAGE_SIZE)
    return load_model_runner(EMBEDDED, options, lambda _: 64, torch.device(request.param))


def sampling_of(source: str, max_new_tokens: int) -> Sampling:
    return Sampling(
        temperature=1.0,
        seed=5,
        grammar=compiler().compile_now("regex", source),
        prompt_length=len(PROMPT),
        end_token_ids=(END,),
        max_new_tokens=max_new_tokens,
    )


@pytest.mark.parametrize(
    "device", ["cpu", "cpu with native kernels", pytest.param("cuda", marks=NEEDS_CUDA)]
)
@pytest.mark.parametrize("num_words", [1, 30, 31, 32, 40])
@pytest.mark.parametrize("vocab_size", [31, 992, 1000])
def test_masks_forbid_what_has_no_bit(device: str, num_words: int, vocab_size: int) -> None:
    """Masks may be narrower or wider than the logits, whose rows may lie apart in memory."""
    device, _, has_library = device.partition(" ")
    logits = torch.randn(3, vocab_size)
    bits = np.random.default_rng(3).integers(0, 1 << 32, size=(2, num_words), dtype=np.uint32)
    bits[0, ::3], bits[1, ::4] = 0, 0xFFFFFFFF
    masks = TokenMasks([0, 2], bits, compiled() if has_library else None)
    apart = torch.zeros(3, vocab_size + 5, device=device)[:, :vocab_size].copy_(logits)
    masked = masks.apply(apart).cpu()
    for row, mask in zip((0, 2), bits, strict=True):
        is_allowed = [
            token < 32 * num_words and bool(int(mask[token >> 5]) >> (token & 31) & 1)
            for token in range(vocab_size)
        ]
        assert (masked[row] > -torch.inf).tolist() == is_allowed
        assert torch.equal(masked[row][is_allowed], logits[row][is_allowed])
    assert torch.equal(masked[1], logits[1])


def answer(
    runner: ModelRunner, sampling: Sampling, sequence_id: int, runs_ahead: bool
) -> list[int]:
    """Computes an answer as a scheduler does: a step that was started ahead of several tokens is
    dropped, and its pages are written again."""
    tokens, num_fed, pages = list(PROMPT), 0, range(sequence_id * 8, sequence_id * 8 + 8)
    while tokens[-1] != END and len(tokens) < len(PROMPT) + sampling.max_new_tokens:
        part = Slice(tokens[num_fed:], num_fed, pages, sampling, None, sequence_id)
        step = runner.start([part])
        num_fed = len(tokens)
        if runs_ahead:
            ahead = Slice([UNKNOWN], num_fed, pages, sampling, 0, sequence_id)
            next_step = runner.start([ahead], None, step)
        (sampled,) = step.sampled()
        assert sampled is not None
        tokens += sampled.tokens
        if runs_ahead and len(sampled.tokens) == 1 and tokens[-1] != END:
            (sampled,) = next_step.sampled()
            assert sampled is not None
            num_fed += 1
            tokens += sampled.tokens
    runner.end_sequence(sequence_id)
    return tokens[len(PROMPT) :][: sampling.max_new_tokens]


@pytest.mark.parametrize(
    ("source", "max_new_tokens"),
    [(FORCED, 60), (r"[a-z ]+\.", 40), (r'\{ "name": "[^"]+", "hobby": \[.*\] \}', 30)],
)
def test_running_ahead_changes_no_token(
    runner: ModelRunner, source: str, max_new_tokens: int
) -> None:
    """Neither where several tokens are forced, nor where an end has to replace what was sampled."""
    sampling = sampling_of(source, max_new_tokens)
    ahead = answer(runner, sampling, 1, runs_ahead=True)
    assert ahead == answer(runner, sampling, 2, runs_ahead=False)
    assert ahead[-1] == END
    assert re.fullmatch(source, tokenizer().decode_bytes(ahead[:-1]).decode())
