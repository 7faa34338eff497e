"""One picture of the cluster, made of a core that was told what happens."""

from __future__ import annotations

import json

import msgspec
import pytest

from coordinator.answers.request import Request
from coordinator.core.core import CoordinatorCore
from coordinator.core.instructions import AnswerStarted, Send
from coordinator.live.recent_requests import STAGES, WINDOW_S
from coordinator.live.snapshot import LiveView, Snapshot, Surroundings
from coordinator.timelines.arrival import Arrival
from protocol.counters import NodeCounters
from protocol.ids import Attempt, Node
from protocol.messages import Failed, Generate, Goodbye, LinkLoad, Load, TokenOut, TokensOut
from protocol.sampling import Sampling
from protocol.timelines.node_spans import NodeSpan, NodeTimes
from tests.support.coordinator.cores import core_of, hear
from tests.support.coordinator.nodes import load_of

D0, D1 = Node("d0", 1), Node("d1", 1)
OWN = NodeTimes((NodeSpan("admission", 0.001), NodeSpan("handover", 0.012)))
PREFILL = NodeTimes((NodeSpan("compute", 0.01, 20),))
AROUND = Surroundings(
    coordinator="tcp://me:1",
    version="1",
    model="tiny",
    policy="cost",
    num_coordinators=2,
    is_connected=True,
    lag_s=0.001,
    max_ttft_s=0.0,
    words_of=lambda prefix: None if prefix.is_salted else "words",
)


def snapshot_of(core: CoordinatorCore, now: float, view: LiveView | None = None) -> Snapshot:
    return (view or LiveView()).snapshot(core, AROUND, now, 1_000_000.0 + now)


def submit(core: CoordinatorCore, rid: str, now: float) -> Attempt:
    """Starts a request whose HTTP request had come 2 ms before."""
    arrival = Arrival("http", received_at=now - 0.002, parsed_at=now - 0.001)
    request = Request(list(range(1, 41)), Sampling(seed=7), 8, rid=rid, arrival=arrival)
    started, *instructions = core.submit(request, now)
    assert isinstance(started, AnswerStarted)
    (generate,) = [
        one.message
        for one in instructions
        if isinstance(one, Send) and isinstance(one.message, Generate)
    ]
    core.sent(generate, now)
    return generate.attempt


def answer(core: CoordinatorCore, attempt: Attempt, now: float, node: Node = D0) -> None:
    """The first token 20 ms later, the end 30 ms after that."""
    first = TokenOut(attempt, 0, [5], times=OWN, prefill_times=PREFILL)
    core.handle(TokensOut([first], node), now + 0.02)
    core.handle(TokensOut([TokenOut(attempt, 1, [6, 7], "stop")], node), now + 0.05)


def test_the_stages_of_the_last_minute_add_up_to_the_second_token() -> None:
    core = core_of("p0", "d0")
    for number in range(10):
        answer(core, submit(core, f"r{number}", 1.0 + number), 1.0 + number)
    shown = snapshot_of(core, 12.0).waterfall
    assert shown.requests == 10 and [stage.name for stage in shown.stages] == list(STAGES)
    assert shown.first_token_p50_ms == shown.first_token_p99_ms == pytest.approx(22.0)
    by_name = {stage.name: stage for stage in shown.stages}
    assert by_name["intake"].p50_ms == pytest.approx(2.0)
    assert by_name["prefill"].p50_ms == pytest.approx(20.0)
    assert by_name["first step"].p99_ms == pytest.approx(30.0)
    total = sum(stage.typical_ms for stage in shown.stages)
    assert total == pytest.approx(52.0) == pytest.approx(sum(s.slowest_ms for s in shown.stages))


def test_the_slowest_hundredth_is_told_apart_and_old_requests_are_forgotten() -> None:
    core, view = core_of("p0", "d0"), LiveView()
    attempt = submit(core, "old", 0.5)
    answer(core, attempt, 0.5 + 5.0)
    assert snapshot_of(core, 6.0, view).waterfall.first_token_p99_ms == pytest.approx(5022.0)
    hear_all(core, 50.0)
    for number in range(20):
        at = 50.0 + number / 10
        answer(core, submit(core, f"r{number}", at), at + (0.4 if number == 7 else 0.0))
    shown = snapshot_of(core, 6.0 + WINDOW_S, view).waterfall
    assert shown.requests == 20
    prefill = next(stage for stage in shown.stages if stage.name == "prefill")
    assert prefill.typical_ms == pytest.approx(20.0) and prefill.slowest_ms == pytest.approx(420.0)


def hear_all(core: CoordinatorCore, now: float) -> None:
    for name in ("p0", "d0"):
        hear(core, name, now)


def test_a_decision_has_its_forecast_and_what_came_true() -> None:
    core = core_of("p0", "p1", "d0")
    answer(core, submit(core, "done", 1.0), 1.0)
    submit(core, "running", 2.0)
    running, done = snapshot_of(core, 3.0).decisions
    assert (running.rid, running.s_ago, running.actual_ms) == ("running", 1.0, None)
    assert done.rid == "done" and done.actual_ms == pytest.approx(20.0)
    assert done.forecast_ms is not None and done.forecast_ms > 0
    assert "compute" in done.reason and done.runner_up.startswith("p")
    assert done.decode == "d0" and done.prompt_tokens == 40


def test_requests_in_flight_and_failed_ones_are_listed_oldest_and_newest_first() -> None:
    core = core_of("p0", "d0")
    for number in range(3):
        submit(core, f"r{number}", 1.0 + number)
    failing = submit(core, "failing", 4.0)
    core.handle(Failed(failing, "the prompt is odd", "request", D0), 5.0)
    shown = snapshot_of(core, 6.0)
    assert [one.rid for one in shown.in_flight] == ["r0", "r1", "r2"]
    assert shown.num_in_flight == 3 and shown.in_flight[0].age_s == pytest.approx(5.0, abs=0.01)
    (failed,) = shown.failed
    assert (failed.rid, failed.state, failed.error) == (
        "failing",
        "bad_request",
        "the prompt is odd",
    )
    (errors,) = [one for one in shown.tiles if one.name == "errors"]
    assert errors.level == "bad" and errors.value == 1.0


def test_a_client_that_left_is_no_failure() -> None:
    core = core_of("p0", "d0")
    started, *_ = core.submit(Request([1, 2], Sampling(), 4, rid="x"), 1.0)
    assert isinstance(started, AnswerStarted)
    core.cancel(started.answer.request_id, 2.0)
    assert snapshot_of(core, 3.0).failed == []


def test_a_lost_node_keeps_a_row_until_it_is_back() -> None:
    core = core_of("p0", "d0", "d1")
    core.handle(Goodbye(D1), 2.0)
    *live, gone = snapshot_of(core, 2.5).nodes
    assert [one.name for one in live] == ["d0", "p0"]
    assert (gone.name, gone.role, gone.state) == ("d1", "decode", "gone")
    assert gone.heartbeat_s_ago == 0.5 and gone.why.startswith("has died")
    hear(core, "d1", 2.6, incarnation=2)
    names = {one.name: one.state for one in snapshot_of(core, 2.6).nodes}
    assert names.keys() == {"d0", "d1", "p0"} and names["d1"] == "ready"


def test_nodes_say_how_they_are() -> None:
    core = core_of("p0", "p1", "d0", "d1")
    core.set_draining({"p1"}, 0.1)
    hear(core, "d0", 0.1, msgspec.structs.replace(load_of(), turn_s=4.0))
    states = {one.name: one.state for one in snapshot_of(core, 0.2).nodes}
    assert states == {"d0": "held up", "d1": "ready", "p0": "ready", "p1": "draining"}
    later = {one.name: one for one in snapshot_of(core, 2.0).nodes}
    assert later["p1"].state == "silent" and later["p1"].is_draining


def link(num_bytes: int, busy_s: float, exposed_s: float = 0.0, failures: int = 0) -> Load:
    load = load_of()
    row = LinkLoad("p0", "in", "shm", True, num_bytes, 1, busy_s, exposed_s, failures)
    return msgspec.structs.replace(load, links=(row,))


def test_links_are_measured_over_the_last_minute() -> None:
    core, view = core_of("p0", "d0"), LiveView()
    hear(core, "d0", 0.1, link(1_000_000_000, 1.0))
    (first,) = snapshot_of(core, 0.2, view).links
    assert (first.sender, first.receiver, first.moves) == ("p0", "d0", False)
    assert first.gigabytes_per_s == 1.0 and first.exposed_share == 0.0
    hear(core, "d0", 1.1, link(5_000_000_000, 2.0, exposed_s=0.25, failures=2))
    (second,) = snapshot_of(core, 1.2, view).links
    assert second.moves and second.gigabytes_per_s == 4.0 and second.exposed_share == 0.25
    assert second.recent_failures == second.failures_total == 2


def test_token_gaps_are_those_since_somebody_looks() -> None:
    core, view = core_of("p0", "d0"), LiveView()
    answer(core, submit(core, "before", 1.0), 1.0)

    def gap(now: float) -> float | str | None:
        tiles = snapshot_of(core, now, view).tiles
        return next(one.value for one in tiles if one.name == "token gap p99")

    assert gap(2.0) is None
    answer(core, submit(core, "after", 2.1), 2.1)
    value = gap(3.0)
    assert isinstance(value, float) and 10.0 < value <= 15.0, "30 ms for two tokens"
    view.restart()
    assert gap(4.0) is None


def test_an_answer_that_went_on_elsewhere_counts_as_resumed() -> None:
    core = core_of("p0", "d0", "d1")
    attempt = submit(core, "moved", 1.0)
    (row,) = snapshot_of(core, 1.0).in_flight
    node = {"d0": D0, "d1": D1}[row.decode or ""]
    other = D1 if node == D0 else D0
    core.handle(TokensOut([TokenOut(attempt, 0, [5])], node), 1.1)
    core.handle(Goodbye(node), 1.2)
    core.tick(1.3)
    second = Attempt(attempt.request_id, 2)
    core.handle(TokensOut([TokenOut(second, 0, [6], "stop")], other), 1.4)
    shown = snapshot_of(core, 1.5)
    (resumed,) = [one for one in shown.tiles if one.name == "resumed"]
    assert (resumed.value, resumed.level) == (1, "warn")
    assert shown.decisions[0].actual_ms is None


def test_the_cache_tells_what_was_saved_and_words_that_may_be_shown() -> None:
    core = core_of("p0", "d0")
    counters = NodeCounters(reused_tokens=3000, fetched_tokens=1000, computed_tokens=500)
    hear(core, "p0", 0.1, msgspec.structs.replace(load_of(), counters=counters))
    for name, is_salted in ((b"open", False), (b"open", False), (b"salted", True)):
        core.statistics.hot_prefixes.hit(name.rjust(16), list(range(16)), is_salted, 0.1)
    shown = snapshot_of(core, 2.0).cache
    assert shown.reused_tokens == 4000 and shown.computed_tokens == 500
    assert shown.saved_s == 4.0, "at 1,000 tokens a second"
    assert [(one.hits, one.words) for one in shown.hottest] == [(2, "words"), (1, None)]
    assert shown.hottest[1].is_salted and shown.hottest[0].last_hit_s_ago == 1.9


def test_events_have_the_time_of_the_wall_and_all_of_it_is_json() -> None:
    core = core_of("p0", "d0")
    shown = snapshot_of(core, 7.0)
    assert [event.unix_s for event in shown.events] == [1_000_000.0, 1_000_000.0]
    assert json.loads(msgspec.json.encode(shown))["num_coordinators"] == 2
