"""Slices of a sequence: who brings which tokens, and whose sample comes next."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from engine.batches.sequence import UNKNOWN, Sequence, Slice
from engine.cache.prefix_cache import PrefixCache
from protocol.sampling import Sampling

GREEDY = Sampling(temperature=0.0)
PENALISED = Sampling(frequency_penalty=0.5)


def sequence_of(tokens: Seq[int], sampling: Sampling = GREEDY, num_computed: int = 0) -> Sequence:
    lease = PrefixCache(8, 16).acquire([], 8, 0.0)
    assert lease is not None
    return Sequence(list(tokens), lease, sampling, num_computed, 7)


def planned(sequence: Sequence, max_tokens: int = 100, position: int = 0) -> Slice:
    return sequence.next_slice(max_tokens, position)


def test_the_first_slice_that_samples_brings_what_came_before_it_and_no_other_does() -> None:
    sequence = sequence_of(range(10), PENALISED, num_computed=2)
    inner, last = planned(sequence, 5), planned(sequence, 5)
    assert (inner.replay, inner.sampling) == ((), None)
    assert (list(last.token_ids), list(last.replay)) == ([7, 8, 9], list(range(7)))
    following = planned(sequence)
    assert (list(following.token_ids), list(following.replay)) == ([UNKNOWN], [])
    sequence.computed(inner)
    sequence.computed(last)
    sequence.tokens.append(10)
    sequence.computed(following)
    sequence.tokens.append(11)
    known = planned(sequence)
    assert (list(known.token_ids), list(known.replay)) == ([11], [])
    assert {part.sequence_id for part in (inner, last, following, known)} == {7}


def test_nothing_is_replayed_for_a_sampling_without_state() -> None:
    sequence = sequence_of(range(10), num_computed=4)
    assert list(planned(sequence).replay) == []


def test_a_slice_covers_all_tokens_that_a_step_sampled() -> None:
    sequence = sequence_of(range(4))
    part = planned(sequence)
    sequence.computed(part)
    assert sequence.samples_next(part)
    sequence.tokens += [4, 5, 6]
    assert sequence.num_unplanned == 3
    following = planned(sequence, sequence.num_unplanned)
    assert (list(following.token_ids), following.start) == ([4, 5, 6], 4)
    assert following.sampling is not None and following.follows is None
    sequence.computed(following)
    assert sequence.samples_next(following)


def test_what_a_step_ahead_samples_comes_next_if_the_step_before_sampled_one_token() -> None:
    sequence = sequence_of(range(4))
    first, ahead = planned(sequence), planned(sequence)
    sequence.computed(first)
    sequence.tokens.append(4)
    sequence.computed(ahead)
    assert sequence.samples_next(ahead)


def test_what_a_step_ahead_samples_is_nobodys_if_the_step_before_sampled_several() -> None:
    """It computed the first of them; the next step computes the others."""
    sequence = sequence_of(range(4), PENALISED)
    first, ahead = planned(sequence, position=3), planned(sequence)
    assert (list(ahead.token_ids), ahead.follows) == ([UNKNOWN], 3)
    sequence.computed(first)
    sequence.tokens += [4, 5, 6]
    third = planned(sequence, sequence.num_unplanned)
    assert (list(third.token_ids), third.start, list(third.replay)) == ([5, 6], 5, [])
    sequence.computed(ahead)
    assert not sequence.samples_next(ahead)
    sequence.computed(third)
    assert sequence.samples_next(third)


def test_a_short_budget_cuts_several_tokens_and_their_state_misses_none() -> None:
    sequence = sequence_of(range(4), PENALISED)
    sequence.computed(planned(sequence))
    sequence.tokens += [4, 5, 6]
    inner, last = planned(sequence, 2), planned(sequence, 2)
    assert (list(inner.token_ids), inner.sampling) == ([4, 5], None)
    assert (list(last.token_ids), list(last.replay)) == ([6], [4, 5])
