"""States of sequences know what a plain count over the whole history does, however they are fed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine.batches.sequence import UNKNOWN, Slice
from protocol.sampling import Sampling
from tests.support.engine.sequence_states import LOOKS_AT_ALL, assert_seen, states


def single(sequence_id: int, tokens: Sequence[int], start: int = 0) -> Slice:
    return Slice(tokens, start, [], LOOKS_AT_ALL, sequence_id=sequence_id)


def test_a_step_computed_again_does_not_see_what_the_one_behind_it_fed() -> None:
    fed = states()
    first, second = [1, 2, 3], [4, 5, 6, 7]
    slices = [single(0, first), single(1, second)]
    fed.feed(slices)
    sampled = torch.tensor([7, 7])
    ahead = [
        Slice([UNKNOWN], len(tokens), [], LOOKS_AT_ALL, i, sequence_id=i)
        for i, tokens in enumerate((first, second))
    ]
    fed.feed(ahead, [0, 1], sampled)
    for again in ([slices[0]], [slices[1]], slices):
        seen = fed.feed(again)
        for row, part in enumerate(again):
            assert_seen(seen, row, list(part.token_ids), True)
    seen = fed.feed(ahead, [0, 1], sampled)
    for row, tokens in enumerate((first, second)):
        assert_seen(seen, row, [*tokens, 7], True)


def test_a_row_that_is_given_back_is_empty_for_the_next_sequence() -> None:
    fed = states()
    for sequence_id in range(50):
        assert_seen(fed.feed([single(sequence_id, [1, 1, 1, 2])]), 0, [1, 1, 1, 2], True)
        fed.end(sequence_id)
        fed.end(sequence_id)  # nobody has that one any more
    assert len(fed) == 0
    assert fed.num_rows <= 4, "rows are not used again"


def test_sequences_without_state_have_none() -> None:
    fed = states()
    assert fed.feed([Slice([1], 0, [], Sampling(temperature=0.0), sequence_id=3)]) is None
    assert len(fed) == 0


def test_what_fails_while_it_is_fed_can_be_fed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = states()
    fed.feed([single(0, [1, 2, 3, 4])])

    def fails(*_: object) -> Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(Tensor, "scatter_add_", fails)
        fed.feed([single(0, [5], 4)])
    assert_seen(fed.feed([single(0, [5], 4)]), 0, [1, 2, 3, 4, 5], True)


def test_tokens_that_were_left_out_are_noticed() -> None:
    fed = states()
    with pytest.raises(AssertionError, match="left out"):
        fed.feed([single(0, [1], 5)])
    assert len(fed) == 0, "nobody would end it"
    fed.feed([single(0, [1, 2, 3])])
    with pytest.raises(AssertionError, match="left out"):
        fed.feed([single(0, [1], 5)])


def test_a_sequence_with_state_has_an_id() -> None:
    with pytest.raises(AssertionError, match="names no sequence"):
        states().feed([Slice([1], 0, [], LOOKS_AT_ALL)])
