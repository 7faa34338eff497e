"""Whatever happens to a request and whatever nodes tell, its spans have no gap and none is
negative."""

from __future__ import annotations

from typing import get_args

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from coordinator.timelines.arrival import Arrival
from coordinator.timelines.ended_requests import ReportableRequest
from coordinator.timelines.timeline import Timeline
from protocol.timelines.node_spans import NodeSpan, NodeSpanName, NodeTimes
from protocol.timelines.request_reports import RequestFacts
from tests.support.kvrelay.timelines import assert_gapless

FACTS = RequestFacts("r", "1", "", "ended", "stop", "", 9, 0, 1, 0, 1, None, "d0", "")

Event = tuple[float, str, "NodeTimes | None", "NodeTimes | None"]

spans = st.builds(
    NodeSpan, st.sampled_from(get_args(NodeSpanName)), st.floats(0.0, 2.0), st.integers(0, 64)
)
times = st.none() | st.lists(spans, max_size=6).map(lambda some: NodeTimes(tuple(some)))
event = st.tuples(
    st.floats(0.0, 1.0),
    st.sampled_from(["routed", "sent", "told", "lost", "first_event", "ended", "replied"]),
    times,
    times,
)


@given(st.lists(event, min_size=1, max_size=30))
def test_spans_are_gapless_and_sum_to_the_whole(events: list[Event]) -> None:
    now = 1.0
    timeline = Timeline(Arrival("", 0.5, 0.75), now)
    for pause_s, what, answering, computing in events:
        now += pause_s
        if what == "routed":
            timeline.routed("d0", "p0", now)
        elif what == "told":
            timeline.told(answering, computing, now)
        elif what == "lost":
            timeline.lost("it broke", now)
        elif what == "first_event":
            timeline.first_event(now - pause_s / 2, now)
        else:
            getattr(timeline, what)(now)
    report = ReportableRequest(FACTS, timeline).report("me", True, now + 0.5)
    assert_gapless(msgspec.to_builtins(report))
    assert report.total_ms >= 500.0
