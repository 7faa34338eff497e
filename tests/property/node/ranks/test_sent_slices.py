"""Slices reach other ranks as they are, whatever went before."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.batches.sequence import UNKNOWN, ScoredTokens, Slice
from node.ranks.wire.commands import AnyCommand, StepCommand
from node.ranks.wire.slices import SliceDecoder, SliceEncoder
from protocol.sampling import Sampling

IDS = st.lists(st.integers(UNKNOWN, 2**31 - 1), max_size=6)
SLICES = st.builds(
    Slice,
    token_ids=IDS.filter(bool),
    start=st.integers(0, 2**31),
    pages=st.lists(st.integers(0, 3), max_size=5),
    sampling=st.none()
    | st.builds(Sampling, seed=st.integers(0, 2**63 - 1), temperature=st.just(0.5)),
    follows=st.none() | st.integers(0, 9),
    sequence_id=st.integers(-1, 2) | st.just(2**40),
    replay=IDS,
    scored=st.none()
    | st.builds(ScoredTokens, st.integers(0, 9), IDS, st.builds(Sampling, seed=st.integers(0, 9))),
)


def fields_of(part: Slice) -> dict[str, object]:
    return {name: value for name, value in msgspec.structs.asdict(part).items() if name != "pages"}


@given(st.lists(st.tuples(st.lists(SLICES, max_size=4), st.sets(st.integers(0, 2))), max_size=6))
def test_every_step_arrives_as_it_was(steps: list[tuple[list[Slice], set[int]]]) -> None:
    encoder, decoder = SliceEncoder(), SliceDecoder()
    decode = msgspec.msgpack.Decoder(AnyCommand).decode
    for number, (slices, ended) in enumerate(steps):
        command = StepCommand(number, encoder.encode(slices), feeds_streams=False, after=0)
        arrived = decode(msgspec.msgpack.encode(command))
        assert arrived == command
        for part, sent in zip(decoder.decode(arrived.slices), slices, strict=True):
            assert list(part.pages) == list(sent.pages)
            assert fields_of(part) == fields_of(sent)
        for sequence_id in ended:
            encoder.end_sequence(sequence_id)
            decoder.end_sequence(sequence_id)
