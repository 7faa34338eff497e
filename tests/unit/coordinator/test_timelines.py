"""Where the time of requests went, as a coordinator tells it: retries, pauses, failures, bounds."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.answers.request import Request
from coordinator.core.core import CoordinatorCore
from coordinator.core.instructions import AnswerStarted, Instruction, Send
from coordinator.core.pause import Pause
from coordinator.timelines.arrival import Arrival
from coordinator.timelines.ended_requests import EndedRequests, ReportableRequest
from coordinator.timelines.timeline import MAX_ATTEMPTS, Timeline
from protocol.ids import Attempt, Node
from protocol.messages import AskRequests, Failed, Generate, RequestsReply, TokenOut, TokensOut
from protocol.sampling import Sampling
from protocol.timelines.node_spans import NodeSpan, NodeTimes
from protocol.timelines.request_reports import RequestFilter, RequestReport
from tests.support.coordinator.cores import ME, core_of
from tests.support.kvrelay.timelines import assert_gapless, names_of

D0, P0 = Node("d0", 1), Node("p0", 1)
ARRIVAL = Arrival("http-1", received_at=1.0, parsed_at=1.001)
DECODE = NodeTimes((NodeSpan("admission", 0.001), NodeSpan("handover", 0.012)), inbox_s=0.002)
PREFILL = NodeTimes((NodeSpan("step_wait", 0.002), NodeSpan("compute", 0.008, 20)))


def request(rid: str = "mine") -> Request:
    return Request(list(range(1, 21)), Sampling(seed=7), 8, rid=rid, arrival=ARRIVAL)


def submit(core: CoordinatorCore, now: float, rid: str = "mine") -> tuple[str, Attempt]:
    """Returns the request's id and the attempt that was sent."""
    started, *instructions = core.submit(request(rid), now)
    assert isinstance(started, AnswerStarted)
    return started.answer.request_id, sent(core, instructions, now)


def sent(core: CoordinatorCore, instructions: list[Instruction], now: float) -> Attempt:
    """Returns the attempt among these instructions, which is on its way now."""
    (generate,) = [
        one.message
        for one in instructions
        if isinstance(one, Send) and isinstance(one.message, Generate)
    ]
    core.sent(generate, now)
    return generate.attempt


def report_of(core: CoordinatorCore, name: str, now: float) -> RequestReport:
    (report,) = core.requests(RequestFilter(name=name), now)
    assert_gapless(msgspec.to_builtins(report))
    return report


def named(report: RequestReport) -> list[tuple[str, float]]:
    return names_of(msgspec.to_builtins(report))


def test_the_time_to_the_first_token_is_shared_out_among_those_who_had_it() -> None:
    core = core_of("p0", "d0")
    request_id, attempt = submit(core, 1.003)
    out = TokenOut(attempt, 0, [5], times=DECODE, prefill_times=PREFILL)
    core.handle(TokensOut([out], D0), 1.020)
    report = report_of(core, "mine", 1.020)
    assert named(report) == [
        ("http_in", 1.0),
        ("tokenize", 2.0),
        ("wire", 4.0),
        ("admission", 1.0),
        ("wire", 2.0),
        ("step_wait", 2.0),
        ("compute", 8.0),
    ]
    assert report.spans[2].where == "coordinator ↔ d0"
    assert report.spans[2].details == {"inbox_up_to_ms": 2.0}
    assert report.spans[4].where == "d0 ↔ p0"
    assert (report.spans[-1].where, report.spans[-1].details) == ("p0", {"tokens": 20})
    assert report.computing_ms == 8.0 and report.first_token_ms == 20.0
    assert report.state == "answering" and report.http_id == "http-1"
    for name in (request_id, "http-1"):
        assert report_of(core, name, 1.020) == report


def test_a_first_token_that_takes_the_short_way_is_told_of_once() -> None:
    core = core_of("p0", "d0")
    _, attempt = submit(core, 1.003)
    asker = NodeTimes((NodeSpan("admission", 0.001),))
    early = TokenOut(attempt, 0, [5], times=asker, prefill_times=PREFILL)
    core.handle(TokensOut([early], P0), 1.020)
    whole = NodeTimes((*DECODE.spans, NodeSpan("transfer", 0.003)))
    same = TokenOut(attempt, 0, [5], times=whole, prefill_times=PREFILL)
    core.handle(TokensOut([same], D0), 1.025)
    core.handle(TokensOut([TokenOut(attempt, 1, [6], "length")], D0), 1.030)
    report = report_of(core, "mine", 2.0)
    assert named(report)[2:] == [
        ("wire", 6.0),
        ("admission", 1.0),
        ("step_wait", 2.0),
        ("compute", 8.0),
        ("joining", 2.0),
        ("transfer", 3.0),
        ("decode", 5.0),
        ("reply", 970.0),
    ]
    assert report.spans[2].where == "coordinator ↔ d0 ↔ p0"
    assert report.completion_tokens == 2 and report.first_token_ms == 20.0


def test_a_retry_is_a_further_attempt_with_the_reason_of_the_last() -> None:
    core = core_of("p0", "d0", "d1")
    _, first = submit(core, 1.003)
    failed = Failed(first, "the link broke", "node", P0)
    again = sent(core, core.handle(failed, 1.100), 1.101)
    assert again.number == 2
    report = report_of(core, "mine", 1.2)
    assert [(span.name, span.attempt) for span in report.spans[2:]] == [
        ("unanswered", 1),
        ("route", 2),
        ("unanswered", 2),
    ]
    assert report.spans[2].details == {"ended_by": "the link broke"}
    assert report.state == "computing" and report.first_token_ms is None and report.attempts == 2


def test_an_answer_that_gave_way_shows_its_pause() -> None:
    core = core_of("d0")
    _, attempt = submit(core, 1.003)
    core.handle(TokensOut([TokenOut(attempt, 0, [5])], D0), 1.010)
    pause = NodeTimes((NodeSpan("paused", 0.5), NodeSpan("compute", 0.1, 21)))
    core.handle(TokensOut([TokenOut(attempt, 1, [6], times=pause)], D0), 2.0)
    report = report_of(core, "mine", 2.5)
    assert named(report)[2:] == [
        ("wire", 7.0),
        ("decode", 390.0),
        ("paused", 500.0),
        ("compute", 100.0),
        ("decode", 500.0),
    ]
    assert report.computing_ms == 0.0, "what was computed after the first token is another matter"


def test_a_pause_of_the_cluster_is_a_wait_in_the_queue() -> None:
    core = core_of("d0")
    submit(core, 1.003)
    core.set_pause(Pause(1, "retract"), 1.1)
    sent(core, core.set_pause(Pause(2, None), 3.1), 3.1)
    report = report_of(core, "mine", 3.2)
    assert named(report)[2:] == [
        ("unanswered", 97.0),
        ("queue", 2000.0),
        ("unanswered", 100.0),
    ]


@pytest.mark.parametrize("is_lost", [False, True])
def test_requests_without_success_are_kept_too(is_lost: bool) -> None:
    core = core_of("d0")
    request_id, attempt = submit(core, 1.003)
    if is_lost:
        core.cancel(request_id, 1.5)
    else:
        core.handle(Failed(attempt, "too long for me", "request", D0), 1.5)
    report = report_of(core, "mine", 1.6)
    assert report.state == "ended"
    assert report.outcome == ("client_left" if is_lost else "bad_request")
    assert report.error == ("the client has left" if is_lost else "too long for me")
    assert ("unanswered", 497.0) in named(report)


def test_lists_are_filtered_and_have_no_spans() -> None:
    core = core_of("d0", "d1")
    _, attempt = submit(core, 2.0, "one")
    submit(core, 3.0, "two")
    node = Node(str(report_of(core, "one", 3.5).decode_node), 1)
    core.handle(TokensOut([TokenOut(attempt, 0, [5], "length")], node), 4.0)

    def rids(**wanted: object) -> list[str]:
        found = core.requests(RequestFilter(**wanted), 5.0)  # type: ignore[arg-type]
        assert all(report.spans == [] for report in found)
        return [report.rid for report in found]

    assert rids() == ["two", "one"], "unfinished ones first"
    assert rids(limit=1) == ["two"]
    assert rids(state="ended") == ["one"] and rids(state="unfinished") == ["two"]
    assert rids(state="computing") == ["two"] and rids(state="waiting") == []
    assert sorted(rids(node="d0") + rids(node="d1")) == ["one", "two"]
    assert rids(older_than_s=3.9) == ["two", "one"] and rids(older_than_s=4.1) == []


def test_another_coordinator_is_told_the_same() -> None:
    core = core_of("d0")
    submit(core, 1.003)
    wanted = RequestFilter(name="mine")
    (send,) = core.handle(AskRequests("tcp://other:1", "q", wanted), 2.0)
    assert send == Send("tcp://other:1", RequestsReply("q", ME, core.requests(wanted, 2.0)))


def test_ended_requests_are_bounded_in_number_and_age() -> None:
    core = core_of("d0")
    kept = EndedRequests(max_ended=3, kept_s=10.0)
    for now in range(5):
        request_id, _ = submit(core, float(now), f"r{now}")
        core.cancel(request_id, float(now))
        kept.add(next(core.statistics.ended_requests.newest_first(now)), float(now))

    def rids(now: float) -> list[str]:
        return [one.facts.rid for one in kept.newest_first(now)]

    assert rids(4.0) == ["r4", "r3", "r2"]
    assert rids(12.5) == ["r4", "r3"] and rids(15.0) == []


def test_a_timeline_of_very_many_attempts_is_bounded_and_has_no_gap() -> None:
    core = core_of("d0")
    request_id, _ = submit(core, 1.003)
    core.cancel(request_id, 1.004)
    (facts,) = [one.facts for one in core.statistics.ended_requests.newest_first(1.1)]
    timeline = Timeline(ARRIVAL, 1.003)
    for number in range(3 * MAX_ATTEMPTS):
        timeline.routed("d0", "", 2.0 + number)
        timeline.sent(2.25 + number)
        timeline.lost("it broke", 2.5 + number)
    assert len(timeline.attempts) == MAX_ATTEMPTS
    report = ReportableRequest(facts, timeline).report(ME, True, 100.0)
    assert_gapless(msgspec.to_builtins(report))
    assert sum(span.name == "earlier_attempts" for span in report.spans) == 1
