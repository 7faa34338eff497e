"""Functions of single numbers whose bits do not depend on where in a tensor a number stands.

torch computes exp, tanh and the like with vector instructions, and what is left over at the end of
a row, or of the share of a thread, one by one with another library: in other bits. Neither happens
within a piece that one thread computes whole and that is a multiple of the vectors long.
"""

from __future__ import annotations

from torch import Tensor

PIECE = 32_768
"""Numbers: torch splits no more than that among threads (at::internal::GRAIN_SIZE)."""


def exp_(x: Tensor) -> Tensor:
    """In place; `x` is contiguous."""
    for piece in x.view(-1).split(PIECE):
        piece.exp_()
    return x


def tanh_(x: Tensor) -> Tensor:
    """In place; `x` is contiguous."""
    for piece in x.view(-1).split(PIECE):
        piece.tanh_()
    return x
