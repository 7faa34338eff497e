"""Slices reach other ranks as they are, whatever went before; what is known already stays home."""

from __future__ import annotations

from engine.batches.sequence import ScoredTokens, Slice
from node.ranks.wire.slices import SliceDecoder, SliceEncoder
from protocol.sampling import Sampling


def test_of_a_page_table_that_grows_only_the_new_page_travels() -> None:
    encoder, table = SliceEncoder(), list(range(1000))
    encoder.encode([Slice([1], 0, table, None)])
    table.append(7)  # the scheduler's own list
    (command,) = encoder.encode([Slice([1], 0, table, None)])
    assert command.keeps_pages and len(command.new_pages) == 4


def test_the_sampling_of_a_sequence_travels_once_wherever_it_stands_in_the_step() -> None:
    encoder, decoder = SliceEncoder(), SliceDecoder()
    first, second = Sampling(grammar="a" * 1000), Sampling(grammar="b" * 1000)
    scored = ScoredTokens(0, [2], first)
    steps = [
        [Slice([1], 0, [], None, sequence_id=1, scored=scored)],
        [Slice([1], 1, [], first, sequence_id=1), Slice([1], 0, [], second, sequence_id=2)],
        [Slice([1], 1, [], second, sequence_id=2), Slice([1], 2, [], first, sequence_id=1)],
    ]
    sent = [encoder.encode(step) for step in steps]
    samplings = [
        one.new_sampling
        for step in sent
        for command in step
        for one in (command, command.scored)
        if one is not None and one.new_sampling is not None
    ]
    assert samplings == [first, second]
    arrived = [[part.sampling for part in decoder.decode(step)] for step in sent]
    assert arrived == [[None], [first, second], [second, first]]


def test_a_sequence_that_has_ended_is_remembered_by_nobody() -> None:
    encoder, decoder = SliceEncoder(), SliceDecoder()
    part = Slice([1], 0, [], Sampling(grammar="a"), sequence_id=1)
    for _ in range(2):
        (command,) = encoder.encode([part])
        assert command.new_sampling == part.sampling, "a sequence of this number is a new one"
        decoder.decode([command])
        for end in (encoder, decoder):
            assert end._samplings
            end.end_sequence(1)
            assert not end._samplings
