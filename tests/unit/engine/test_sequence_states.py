"""States of sequences know what a plain count over the whole history does, however they are fed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.batches.sequence import UNKNOWN, Slice
from engine.sampling.states import SequenceStates
from engine.sampling.token_counts import SeenTokens
from protocol.sampling import Sampling

VOCAB_SIZE = 12
CPU = torch.device("cpu")
PROMPT_LENGTH = 3
LOOKS_AT_ALL = Sampling(
    repetition_penalty=1.5, frequency_penalty=0.5, prompt_length=PROMPT_LENGTH, seed=1
)
LOOKS_AT_ANSWER = Sampling(frequency_penalty=0.5, prompt_length=PROMPT_LENGTH)
TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=PROMPT_LENGTH, max_size=20)


def states() -> SequenceStates:
    return SequenceStates(VOCAB_SIZE, CPU)


def assert_seen(seen: SeenTokens | None, row: int, tokens: Sequence[int], all_: bool) -> None:
    assert seen is not None
    prompt, answer = tokens[:PROMPT_LENGTH], tokens[PROMPT_LENGTH:]
    assert seen.num_in_answer[row].tolist() == [answer.count(t) for t in range(VOCAB_SIZE)]
    assert seen.in_prompt[row].tolist() == [all_ and t in prompt for t in range(VOCAB_SIZE)]


@given(
    histories=st.lists(TOKENS, min_size=1, max_size=6),
    data=st.data(),
)
def test_a_state_counts_what_its_sequence_has(
    histories: list[list[int]], data: st.DataObject
) -> None:
    """Sequences of different lengths, a few new tokens at a time, some of which only the device
    knows; now and then a step comes twice."""
    fed = states()
    known = [0] * len(histories)
    samplings = [LOOKS_AT_ALL if i % 2 else LOOKS_AT_ANSWER for i in range(len(histories))]
    while any(known[i] < len(tokens) for i, tokens in enumerate(histories)):
        slices, sources, previous, rows = [], [], [0], []
        for i, tokens in enumerate(histories):
            left = len(tokens) - known[i]
            if left == 0 or data.draw(st.booleans()):
                continue
            num_new = data.draw(st.integers(1, left)) if known[i] else left
            num_new = data.draw(st.integers(PROMPT_LENGTH, left)) if known[i] == 0 else num_new
            start = known[i]
            is_unread = start > 0 and num_new == 1 and data.draw(st.booleans())
            replayed = data.draw(st.integers(0, num_new - 1))
            new = tokens[start : start + num_new]
            slices.append(
                Slice(
                    [UNKNOWN] if is_unread else new[replayed:],
                    start if is_unread else start + replayed,
                    [],
                    samplings[i],
                    follows=0 if is_unread else None,
                    sequence_id=i,
                    replay=() if is_unread else new[:replayed],
                )
            )
            sources.append(len(previous) if is_unread else UNKNOWN)
            previous += new if is_unread else []
            known[i] += num_new
            rows.append(i)
        for _ in range(data.draw(st.integers(1, 2))):
            seen = fed.feed(slices, sources, torch.tensor(previous))
            for row, i in enumerate(rows):
                assert_seen(seen, row, histories[i][: known[i]], samplings[i] is LOOKS_AT_ALL)
    assert len(fed) == len(histories)
    for i in range(len(histories)):
        fed.end(i)
    assert len(fed) == 0


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
