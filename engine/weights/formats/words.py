"""Integers of four or eight bits in words of 32, as checkpoints pack them: lowest bits first."""

from __future__ import annotations

import torch
from torch import Tensor


def per_word(num_bits: int) -> int:
    """Returns how many integers a word holds."""
    return 32 // num_bits


def unpacked(words: Tensor, num_bits: int) -> Tensor:
    """Takes int32 [..., n]; returns uint8 [..., n * per_word]."""
    values = bytes_of(words)
    if num_bits == 8:
        return values
    return torch.stack((values & 15, values >> 4), dim=-1).flatten(-2)


def bytes_of(words: Tensor) -> Tensor:
    """Takes int32 [..., n]; returns uint8 [..., n * 4], the lowest byte of a word first."""
    if words.stride(-1) != 1:  # where that dimension is 1, `contiguous` would leave it so
        words = words.clone(memory_format=torch.contiguous_format)
    return words.contiguous().view(torch.uint8)


def unpacked_part(words: Tensor, num_bits: int, part: range) -> Tensor:
    """Takes the words that `words_of(part)` names, int32 [..., n]; returns the integers of
    `part`."""
    first = part.start % per_word(num_bits)
    return unpacked(words, num_bits)[..., first : first + len(part)]


def words_of(part: range, num_bits: int) -> slice:
    """Returns which words the integers of `part` are in."""
    size = per_word(num_bits)
    return slice(part.start // size, -(-part.stop // size))
