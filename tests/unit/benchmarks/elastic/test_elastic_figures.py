"""Changes of a cluster leave one node of each role; and what was seen of them is told right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.elastic.changes import TURNS, Change, ChangePlanner
from benchmarks.elastic.figures import (
    failures,
    gone_unstruck,
    longest_waits,
    lost_leases,
    node_figures,
    streams_at_changes,
    summary,
    window_figures,
)
from benchmarks.elastic.load import HANGS_AFTER_S, LoadShape, Seen, conversations_of
from benchmarks.elastic.memory import host_memory, rows_of
from benchmarks.elastic.population import Happened
from benchmarks.elastic.run import (
    LAST_ANSWERS_S,
    LEAST_CHANGES_S,
    Course,
    Drill,
    time_for_changes,
)
from benchmarks.elastic.watching import NodeLife, StartedNode
from infra.cluster import ClusterPlan
from protocol.ids import Role

FOUNDERS: dict[str, Role] = {"p0": "prefill", "p1": "prefill", "d0": "decode", "d1": "decode"}
GOOD = Seen(1.0, 3.0, 0.1, (0.01, 0.03), 3, 1)


def drawn(seed: int, count: int) -> list[Change]:
    """Changes of a cluster in which everybody serves at once."""
    planner, serving, changes = ChangePlanner(seed, 2, 2), dict(FOUNDERS), []
    for _ in range(count):
        change = planner.next(serving)
        if change.kind == "join":
            assert change.node not in serving
            serving[change.node] = change.role
        elif change.kind == "kill":
            del serving[change.node]
        assert set(serving.values()) == {"prefill", "decode"}
        changes.append(change)
    return changes


@pytest.mark.parametrize("seed", range(10))
def test_every_kind_of_change_comes_in_turn_and_both_roles_are_left(seed: int) -> None:
    changes = drawn(seed, 200)
    assert changes == drawn(seed, 200)
    assert {change.kind for change in changes} == set(TURNS)
    joined = [change.node for change in changes if change.kind == "join"]
    assert joined[:4] == ["p2", "d2", "p3", "d3"] and len(set(joined)) == len(joined)


def test_the_last_node_of_a_role_is_never_struck() -> None:
    planner = ChangePlanner(0, 1, 1)
    for _ in range(20):
        assert planner.next({"p0": "prefill", "d0": "decode"}).kind == "join"


def test_conversations_are_the_same_for_a_seed() -> None:
    shape = LoadShape(1.0, 3, 64, 8, range(8, 100))
    assert conversations_of(shape, 1) == conversations_of(shape, 1) != conversations_of(shape, 2)
    assert [len(turn) for turn in conversations_of(shape, 1)[0].turns] == [64, 8, 8]


def link(peer: str, is_open: bool, opened: int, direction: str = "out") -> dict[str, Any]:
    return {
        "peer": peer,
        "direction": direction,
        "transport": "shm",
        "open": is_open,
        "opened": opened,
    }


def course_of(changed: Sequence[Seen], lost: Sequence[tuple[str, float]] = ()) -> Course:
    """d0 was killed at 110 s; p2 was started at 112 s, and served from 115 s on."""
    founder = NodeLife("d0", "decode", 1, 10.0, 11.0, 110.0, [link("p0", True, 2)])
    joined = NodeLife("p2", "prefill", 2, 115.0, 116.5, 140.0, [link("d1", False, 3)])
    joined.links.append(link("d1", True, 1, "in"))
    joined.readings += [(120.0, 50.0), (130.0, 80.0), (140.0, 60.0)]
    return Course(
        ready_after_s=9.0,
        quiet=[GOOD],
        changed=changed,
        changed_at=100.0,
        loaded_until=130.0,
        happened=[
            Happened(Change("kill", "d0", "decode"), 110.0),
            Happened(Change("join", "p2", "prefill"), 112.0),
        ],
        starts=[
            StartedNode("d0", "decode", 1, 1.0),
            StartedNode("p2", "prefill", 2, 112.0),
        ],
        lives=[founder, joined],
        open_pairs={("d0", 1): 1, ("p2", 2): 2},
        idle_at=140.0,
        lost=lost,
        gpus=[(90.0, {"gpu0": 10.0}), (120.0, {"gpu0": 30.0}), (140.0, {"gpu0": 11.0})],
    )


def test_what_clients_saw_is_summed_up() -> None:
    failed = replace(GOOD, failure="refused", first_token_s=None, gaps_s=())
    wrong = replace(GOOD, is_wrong=True, num_attempts=2)
    figures = window_figures([GOOD, failed, wrong])
    assert (figures.requests, figures.failed, figures.wrong, figures.retried) == (3, 1, 1, 1)
    assert (figures.gap_max_ms, figures.ttft_p50_ms) == (30.0, 100.0)
    told = failures(course_of([failed, wrong]))
    assert len(told) == 2 and "refused" in told[0] and "wrong tokens" in told[1]


def test_a_wait_is_told_with_the_changes_that_it_may_come_from() -> None:
    slow = replace(GOOD, began_s=8.0, ended_s=11.0, gaps_s=(1.5,))
    course = course_of([GOOD, slow])
    assert longest_waits(course)[0] == (
        "token gap of 1500 ms in a request from 8.0 to 11.0 s, attempts 1; kill d0 at 10.0 s"
    )
    assert streams_at_changes(course) == [1, 0]


def test_only_a_lease_that_nobody_ended_is_lost() -> None:
    assert lost_leases(course_of([GOOD], [("d0", 113.0)])) == []
    assert lost_leases(course_of([GOOD], [("d0", 109.0), ("p2", 120.0)])) == ["d0", "p2"]
    assert gone_unstruck(course_of([GOOD])) == []
    without_kill = replace(course_of([GOOD]), happened=[])
    assert gone_unstruck(without_kill) == ["d0"]


def test_a_life_of_a_node_has_its_times_pairs_and_memory() -> None:
    founder, joined = node_figures(course_of([GOOD]))
    assert (founder.ended, founder.pairs_opened, founder.pairs_open) == ("kill", 2, None)
    assert (joined.serves_after_s, joined.first_request_after_s) == (3.0, 4.5)
    assert (joined.pairs_opened, joined.pairs_closed, joined.pairs_open) == (3, 3, 2)
    assert joined.pairs_by_transport == {"shm": 3} and joined.pairs_open_idle == 0
    assert (joined.memory_first_mib, joined.memory_peak_mib, joined.memory_last_mib) == (50, 80, 60)


def test_the_line_has_what_changes_cost() -> None:
    line = summary(course_of([replace(GOOD, first_token_s=0.3)]))
    assert line["changed_to_quiet"]["ttft_p50"] == 3.0
    assert line["changed_to_quiet"]["gap_p99"] == 1.0
    assert (line["joined"], line["first_request_after_max_s"]) == (1, 4.5)
    assert line["gpus_peak_mib"] == {"gpu0": 30.0} and line["gpus_idle_mib"] == {"gpu0": 11.0}


def test_lines_of_nvidia_smi_are_read_and_others_left_out() -> None:
    assert rows_of(["0, 512", "no devices", "1, 7"]) == [("0", "512"), ("1", "7")]


def test_memory_is_that_of_living_processes() -> None:
    assert host_memory({"p0": os.getpid(), "d0": 1 << 30}).keys() == {"p0"}


def test_changes_end_early_where_the_whole_run_has_little_time() -> None:
    plan = ClusterPlan(1, 1, "127.0.0.1", 1)
    shape = LoadShape(1.0, 3, 64, 8, range(8, 100))
    drill = Drill(plan, 0, shape, 6.0, 8.0, seconds=120.0, period_s=5.0, seed=0, within_s=200.0)
    assert time_for_changes(drill, 1000.0) == (120.0, HANGS_AFTER_S)
    seconds, patience_s = time_for_changes(drill, 100.0)
    assert seconds + patience_s + drill.idle_close_s < 100.0
    assert time_for_changes(drill, 0.0) == (LEAST_CHANGES_S, LAST_ANSWERS_S)
