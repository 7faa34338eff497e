"""`PromptLogprobs`: logprobs of the tokens of a prompt, as nodes tell them. Pure.

They travel as packed arrays: a prompt of 32,000 tokens with the 20 likeliest at each position has
650,000 numbers, which as lists would take a second to encode.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from protocol.sampling import Sampling
from protocol.trust.bounds import Count

MAX_PROMPT_LOGPROBS = 1 << 22
"""A request may ask for so many logprobs of its prompt: 32 MB of a message."""


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural logarithms of the probabilities of tokens at consecutive positions of a prompt.

    Each position has a row of `logprobs`: the prompt's token | the `num_top` likeliest | the wanted
    ones. Numbers are little-endian.
    """

    start: Count
    """The position of the first row; at least 1, as nothing comes before position 0."""
    num_positions: Count
    num_top: Count
    num_wanted: Count
    logprobs: bytes
    """[num_positions, 1 + num_top + num_wanted] float32."""
    top_ids: bytes
    """[num_positions, num_top] int32: the likeliest tokens, the likeliest first."""

    @property
    def end(self) -> int:
        """The position behind the last row."""
        return self.start + self.num_positions


@dataclass(frozen=True)
class PromptLogprobsRow:
    """The logprobs at one position of a prompt."""

    chosen: float
    """The logprob of the prompt's own token."""
    top: Sequence[float]
    """The logprobs of the likeliest tokens, the likeliest first."""
    top_ids: Sequence[int]
    wanted: Sequence[float]
    """The logprobs of `Sampling.logprob_token_ids`, in their order."""


def is_all_of(logprobs: PromptLogprobs | None, sampling: Sampling) -> bool:
    """Returns whether these are all logprobs of a prompt that `sampling` asks for; None is all of
    nothing."""
    if logprobs is None:
        return num_positions(sampling) == 0
    is_whole = logprobs.num_positions == num_positions(sampling)
    return is_whole and logprobs.start == first_position(sampling)


def rows_of(logprobs: PromptLogprobs, first: int, stop: int) -> list[PromptLogprobsRow]:
    """Returns the rows `first` to `stop` of `logprobs`, counted from its start."""
    top, width = logprobs.num_top, 1 + logprobs.num_top + logprobs.num_wanted
    values: list[float] = _unpacked("f", logprobs.logprobs[4 * first * width : 4 * stop * width])
    ids: list[int] = _unpacked("i", logprobs.top_ids[4 * first * top : 4 * stop * top])
    return [
        PromptLogprobsRow(
            chosen=values[i * width],
            top=values[i * width + 1 : i * width + 1 + top],
            top_ids=ids[i * top : (i + 1) * top],
            wanted=values[i * width + 1 + top : (i + 1) * width],
        )
        for i in range(len(values) // width)
    ]


def joined(parts: Sequence[PromptLogprobs]) -> PromptLogprobs:
    """Returns as one what follows one another; there is at least one part."""
    first = parts[0]
    return PromptLogprobs(
        start=first.start,
        num_positions=sum(part.num_positions for part in parts),
        num_top=first.num_top,
        num_wanted=first.num_wanted,
        logprobs=b"".join(part.logprobs for part in parts),
        top_ids=b"".join(part.top_ids for part in parts),
    )


def first_position(sampling: Sampling) -> int:
    """Returns the first position of the prompt whose logprob has to be computed: position 0 has
    none."""
    return max(1, sampling.prompt_logprobs_from)


def num_positions(sampling: Sampling) -> int:
    """Returns at how many positions of the prompt logprobs have to be computed."""
    if sampling.prompt_logprobs_from < 0:
        return 0
    return max(0, sampling.prompt_length - first_position(sampling))


def _unpacked(kind: Literal["f", "i"], raw: bytes) -> list[Any]:
    numbers: array[Any] = array(kind)
    numbers.frombytes(raw)
    if struct.pack("=I", 1) != struct.pack("<I", 1):  # a big-endian machine
        numbers.byteswap()
    return numbers.tolist()
