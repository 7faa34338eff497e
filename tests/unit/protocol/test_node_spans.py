"""What nodes tell of their time: sums stay true, bounds hold, and nonsense is no message."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from protocol.ids import Attempt, Node
from protocol.messages import TokenOut, TokensOut, decode, encode
from protocol.timelines.node_spans import MAX_NODE_SPANS, NodeSpan, NodeTimes, SpanRecorder


def told(times: NodeTimes) -> TokensOut:
    return TokensOut([TokenOut(Attempt("r", 1), 0, [7], times=times)], Node("d0", 1))


def test_each_span_begins_where_the_last_one_ended() -> None:
    recorder = SpanRecorder(1.0, inbox_s=0.5)
    recorder.end("admission", 1.25)
    recorder.end("fetch", 1.5)
    recorder.end("fetch", 2.0)
    recorder.end("step_wait", 2.0)
    recorder.end_compute(2.5, 4.0, 32)
    recorder.end_compute(2.5, 5.0, 16)
    times = recorder.times()
    assert [(span.name, span.duration_s, span.num_tokens) for span in times.spans] == [
        ("admission", 0.25, 0),
        ("fetch", 0.75, 0),
        ("step_wait", 0.5, 0),
        ("compute", 1.5, 32),
        ("compute", 1.0, 16),
    ]
    assert times.total_s == 4.0 and times.inbox_s == 0.5


def test_a_clock_that_goes_back_makes_no_negative_span() -> None:
    recorder = SpanRecorder(5.0, inbox_s=-1.0)
    recorder.end("admission", 4.0)
    recorder.end("step_wait", 5.5)
    assert recorder.times() == NodeTimes((NodeSpan("step_wait", 0.5),))


def test_a_prompt_of_very_many_chunks_has_few_spans_and_the_same_sums() -> None:
    recorder, num_chunks = SpanRecorder(0.0), 10 * MAX_NODE_SPANS
    for number in range(num_chunks):
        recorder.end("step_wait", number + 0.25)
        recorder.end_compute(-math.inf, number + 1.0, 4)
    times = recorder.times()
    assert len(times.spans) == MAX_NODE_SPANS
    assert times.total_s == num_chunks
    computed = [span for span in times.spans if span.name == "compute"]
    assert sum(span.num_tokens for span in computed) == 4 * num_chunks
    assert sum(span.duration_s for span in computed) == 0.75 * num_chunks
    assert decode(encode(told(times))) == told(times)


@pytest.mark.parametrize(
    "spans",
    [
        [["compute", -0.001]],
        [["compute", math.nan]],
        [["compute", math.inf]],
        [["compute", 0.5, -1]],
        [["lunch", 0.5]],
        [["compute", 0.5]] * (MAX_NODE_SPANS + 1),
    ],
)
def test_what_cannot_be_is_no_message(spans: list[Any]) -> None:
    good = encode(told(NodeTimes((NodeSpan("compute", 0.5),))))
    assert decode(good)
    raw = msgspec.msgpack.decode(good)
    times = [value for value in raw[1][0] if isinstance(value, list) and value and value != [7]]
    times[0][0] = spans
    with pytest.raises(ValueError):
        decode(msgspec.msgpack.encode(raw))
