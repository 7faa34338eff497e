"""Randomness that has no state: Gumbel noise from (request seed, position, token id).

A counter-based hash makes it, so a request meets the very same noise alone, in any batch, or
continued on another node. argmax(log p + Gumbel noise) is a sample from p.
"""

from __future__ import annotations

from torch import Tensor

# Odd 64-bit constants of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
# generators", 2014), as signed integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def gumbel(seeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Returns standard Gumbel noise in float32, a pure function of its int64 arguments, which
    broadcast."""
    key = _mix(_mix(seeds + _GOLDEN) + positions * _GOLDEN)
    bits = _mix(key + tokens * _GOLDEN)
    # The top 52 bits and a half: exact in a double, and strictly between 0 and 1.
    uniform = (_logical_shift(bits, 12).double() + 0.5) * 2.0**-52
    return (-(-uniform.log()).log()).float()


def _mix(x: Tensor) -> Tensor:
    """Applies splitmix64's finaliser; int64 arithmetic wraps around."""
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shifts zeros in: torch shifts signed integers arithmetically, so the sign is masked away."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
