"""Whatever another rank of a node writes, it is a command or a report, or that rank is lost."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.ranks.wire.commands import AnyCommand, AnyReport, EndSequenceCommand, StartFailed
from node.ranks.wire.pipe import Pipe, RankLost
from tests.support.transfer.garbled import hearing, spliced, with_length

PLACES = st.integers(0, 99)
SOME_BYTES = st.binary(max_size=12) | st.sampled_from([b"\x91" * 2000, b"\xa1\xff"])
MESSAGES = [(AnyCommand, EndSequenceCommand(7)), (AnyReport, StartFailed("no memory"))]


@pytest.mark.parametrize(("incoming", "message"), MESSAGES)
@given(data=st.data())
def test_any_bytes_are_a_message_or_the_loss_of_the_rank(
    incoming: object, message: msgspec.Struct, data: st.DataObject
) -> None:
    whole = msgspec.msgpack.encode(message)
    begin, end = data.draw(PLACES), data.draw(PLACES)
    inner = data.draw(
        st.just(whole) | SOME_BYTES | SOME_BYTES.map(lambda new: spliced(whole, begin, end, new))
    )
    raw = with_length(inner)
    raw = data.draw(st.just(raw) | SOME_BYTES.map(lambda new: spliced(raw, begin, end, new)))
    with hearing(raw) as connection:
        try:
            Pipe[msgspec.Struct](connection, incoming).receive(timeout_s=1.0)
        except RankLost:
            assert raw != with_length(whole)
