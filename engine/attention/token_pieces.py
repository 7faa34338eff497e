"""Cuts the keys of a decode step into pieces of like length, whatever the contexts are.

A step in which each sequence had a program of its own would last as long as its longest context. So
a long context is cut into pieces, as many as keep every processor busy for about the same time
(Flash-Decoding, Dao et al. 2023; the scheduling of FlashInfer, Ye et al. 2025):

    contexts  |=====|==|=============================|    in blocks of keys
    pieces    |==|==|==|===|===|===|===|===|===|===|==|    none much longer than total / workers

Pure. A kernel computes the same on the GPU from the lengths that lie there (`_plan_kernel` in
`engine/attention/triton_singles.py`), so that one CUDA graph serves contexts of all lengths. This
file says what it computes, and how much room the result needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SLACK = (9, 8)
"""A piece may be longer than an equal share by this ratio. Cutting a context in two because it is a
block longer than the others would cost more than waiting for that block."""
LEAST_BLOCKS = 3
FEW_PIECES = 12
"""Pieces of fewer blocks are not made, unless there are fewer pieces than these: joining many takes
longer than reading another block."""


@dataclass(frozen=True)
class TokenPiece:
    """Keys [begin, end) of one sequence, which one program computes for each KV head."""

    sequence: int
    begin: int
    end: int


def most_pieces(num_sequences: int, workers: int) -> int:
    """Returns how many pieces there can be, whatever the contexts: the size of the grid and of the
    buffers, which a CUDA graph fixes.

    Of n sequences, cut into pieces of at most `total / workers` blocks, n pieces are not full.
    """
    return num_sequences + workers


def token_pieces(
    contexts: Sequence[int], window: int | None, block: int, workers: int
) -> list[TokenPiece]:
    """Cuts contexts, of at least one token each, into pieces that begin at multiples of `block`
    keys.

    A piece has at most an equal share of all blocks, but for the slack and the least size, and the
    pieces of a sequence differ by one block at most. `workers` is how many pieces are computed at
    once. Those of the longest contexts come first, so that none of them is begun last; those of one
    sequence stay together, in the order of their keys. How a sequence is cut depends on its own
    length and on the common share alone: sequences of one length are cut alike, and give the same
    bits.
    """
    firsts = [0 if window is None else max(0, context - window) for context in contexts]
    blocks = [
        _ceiling(context, block) - first // block
        for context, first in zip(contexts, firsts, strict=True)
    ]
    total = sum(blocks)
    share = _ceiling(total * SLACK[0], workers * SLACK[1])
    share = max(share, min(LEAST_BLOCKS, _ceiling(total, FEW_PIECES)))
    pieces = []
    for sequence in sorted(range(len(contexts)), key=lambda i: (-blocks[i], i)):
        count = _ceiling(blocks[sequence], share)
        start = firsts[sequence] // block
        for index in range(count):
            begin = (start + index * blocks[sequence] // count) * block
            end = (start + (index + 1) * blocks[sequence] // count) * block
            pieces.append(
                TokenPiece(sequence, max(begin, firsts[sequence]), min(end, contexts[sequence]))
            )
    return pieces


def _ceiling(number: int, divisor: int) -> int:
    return -(-number // divisor)
