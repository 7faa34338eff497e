"""Chooses next tokens for a batch, with randomness that has no state.

The random number for (request seed, position, token id) comes from a counter-based hash, so a
request draws the very same tokens alone, in any batch, or continued on another node. A token is
drawn by the Gumbel-max trick: argmax(log p + Gumbel noise) is a sample from p.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protocol.sampling import Sampling

# Odd 64-bit constants of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
# generators", 2014), as signed integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)

MIN_TEMPERATURE = 1e-6
"""Colder than this, logits would overflow float32; nothing but the likeliest token is drawn."""


def sample(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    """One token per row: [n] int64 from `logits` [n, vocab] float32.

    `positions[i]` is the position that the token will have in its sequence.
    """
    greedy = logits.argmax(dim=-1)
    if all(s.temperature == 0 for s in samplings):
        return greedy

    def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

    coldness = [max(s.temperature, MIN_TEMPERATURE) for s in samplings]
    temperature = column(coldness, torch.float32)
    log_probs = (logits / temperature).log_softmax(dim=-1)
    if any(s.top_k > 0 or s.top_p < 1 for s in samplings):
        top_k = column([s.top_k or logits.shape[1] for s in samplings], torch.int64)
        top_p = column([s.top_p for s in samplings], torch.float32)
        log_probs = _keep_top(log_probs, top_k, top_p)
    if any(s.min_p > 0 for s in samplings):
        min_p = column([s.min_p for s in samplings], torch.float32)
        floor = log_probs.amax(dim=-1, keepdim=True) + min_p.log()
        log_probs = log_probs.masked_fill(log_probs < floor, float("-inf"))
    seeds = column([s.seed for s in samplings], torch.int64)
    noise = _gumbel(seeds, column(positions, torch.int64), logits.shape[1])
    drawn = (log_probs + noise).argmax(dim=-1)
    is_greedy = column([s.temperature == 0 for s in samplings], torch.bool)[:, 0]
    return torch.where(is_greedy, greedy, drawn)


def _keep_top(log_probs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """-inf for all but the `top_k` likeliest tokens, and of those the fewest whose probability
    (renormalised over them) reaches `top_p`; the likeliest always stays."""
    ordered, order = log_probs.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(log_probs.shape[1], device=log_probs.device)
    ordered = ordered.masked_fill(ranks >= top_k, float("-inf"))
    probs = ordered.softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    # A row that keeps all must do so whatever its neighbours ask for, rounding included.
    cut = (before >= top_p) & (ranks > 0) & (top_p < 1)
    ordered = ordered.masked_fill(cut, float("-inf"))
    return torch.empty_like(log_probs).scatter_(-1, order, ordered)


def _gumbel(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """[n, vocab] float32 of standard Gumbel noise, a pure function of its arguments."""
    tokens = torch.arange(vocab_size, dtype=torch.int64, device=seeds.device)
    key = _mix(_mix(seeds + _GOLDEN) + positions * _GOLDEN)
    bits = _mix(key + tokens * _GOLDEN)
    # The top 52 bits and a half: exact in a double, and strictly between 0 and 1.
    uniform = (_logical_shift(bits, 12).double() + 0.5) * 2.0**-52
    return (-(-uniform.log()).log()).float()


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser; int64 arithmetic wraps around."""
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """torch shifts signed integers arithmetically, so the sign is masked away."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
