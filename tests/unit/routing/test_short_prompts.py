"""Short prompts are priced, and sent, by what goes before them at a node: not the longer ones.

A prompt of n tokens takes 10 ms + n ms here, or n ms in the steps of answers.
"""

from __future__ import annotations

import pytest

from coordinator.routing.cost import step_under_way_s
from coordinator.routing.dispatch import LETS_PASS_S
from coordinator.routing.node_queue import EQUAL_SHARE
from protocol.admission import OLDEST_SHARE
from tests.support.coordinator.backlogs import NamedBacklog
from tests.support.coordinator.nodes import Nodes, demand_of, load_of

STRETCH = OLDEST_SHARE / (1.0 - OLDEST_SHARE)


def cluster(chunk_tokens: int = 100) -> Nodes:
    nodes = Nodes()
    nodes.join("p0", chunk_tokens=chunk_tokens)
    nodes.join("d0", chunk_tokens=chunk_tokens)
    return nodes


def names(nodes: Nodes, now: float) -> list[str]:
    return [request_id for request_id, _ in nodes.dispatch(now)]


def test_a_prompt_waits_for_shorter_ones_and_for_the_share_of_the_oldest() -> None:
    backlog = NamedBacklog()
    backlog.send("long", 5.0, 0.0)
    backlog.send("short", 0.2, 0.0)
    assert backlog.seconds_before(0.1, 0.0) == pytest.approx(0.1 * STRETCH)
    assert backlog.seconds_before(0.3, 0.0) == pytest.approx(0.2 + 0.5 * STRETCH)
    assert backlog.seconds_before(5.0, 0.0) == backlog.seconds(0.0)
    assert backlog.seconds_before(0.3, 0.1) < backlog.seconds_before(0.3, 0.0)


def test_prompts_of_one_length_do_not_pass_each_other() -> None:
    backlog = NamedBacklog()
    backlog.send("first", 1.0, 0.0)
    assert backlog.seconds_before(1.0 - 0.9 * EQUAL_SHARE, 0.0) == 1.0
    assert backlog.seconds_before(0.5, 0.0) < 1.0


def test_a_heartbeat_does_not_hide_that_what_was_just_sent_is_longer() -> None:
    backlog = NamedBacklog()
    backlog.send("long", 5.0, 0.0)
    backlog.heard(5.0, 0.01)
    assert backlog.seconds_before(0.1, 0.01) == pytest.approx(0.1 * STRETCH)
    backlog.heard(5.0 + 3.0, 0.02)
    assert backlog.seconds_before(0.1, 0.02) == pytest.approx(3.0 + 0.1 * STRETCH)


def test_it_begins_within_a_time_if_it_is_short_enough() -> None:
    backlog = NamedBacklog()
    assert backlog.begins_within(0.0, 0.0) == float("inf")
    backlog.send("long", 5.0, 0.0)
    backlog.send("short", 0.2, 0.0)
    assert backlog.begins_within(1.0, 0.0) == 5.0
    assert backlog.begins_within(0.1, 0.0) == 0.2
    backlog.heard(9.0, 0.0)
    assert backlog.begins_within(0.1, 0.0) == 0.0


@pytest.mark.parametrize("chunk_tokens", [100, 0])
def test_a_short_prompt_is_sent_behind_a_long_one_and_another_long_one_is_not(
    chunk_tokens: int,
) -> None:
    nodes = cluster(chunk_tokens)
    nodes.wait("long", demand_of(2000), 0.0)
    assert names(nodes, 0.0) == ["long"]
    for name, num_tokens in (("other", 2000), ("short", 10)):
        nodes.wait(name, demand_of(num_tokens), 0.1)
    cuts_prompts = chunk_tokens > 0
    assert names(nodes, 0.1) == (["short"] if cuts_prompts else [])
    assert nodes.waits("other")


def test_who_has_waited_long_for_its_turn_is_passed_by_nobody() -> None:
    nodes = cluster()
    for i in range(100):  # the goal becomes what these take, so a long one is impatient soon
        nodes.wait(f"recent{i}", demand_of(10), 0.0)
        nodes.remove(f"recent{i}")
    for name in ("long", "longer"):
        nodes.wait(name, demand_of(10_000), 0.0)
    assert names(nodes, 0.0) == ["long"]
    nodes.wait("early", demand_of(10), LETS_PASS_S - 0.1)
    assert names(nodes, LETS_PASS_S - 0.1) == ["early"]
    nodes.computed("early", LETS_PASS_S - 0.05)
    nodes.wait("late", demand_of(10), LETS_PASS_S)
    assert names(nodes, LETS_PASS_S) == []


def test_who_passes_pays_for_those_it_passes() -> None:
    nodes = cluster()
    nodes.wait("long", demand_of(2000), 0.0)
    ((_, route),) = nodes.dispatch(0.0)
    candidates, _ = nodes.placement.explain(demand_of(10), 0.0)
    costs = {c.live.node.name: c.cost for c in [*candidates.prefill, *candidates.both]}
    assert costs[route.computes.name].passing_s > 0.0
    assert sum(cost.passing_s > 0.0 for cost in costs.values()) == 1


@pytest.mark.parametrize(
    ("max_itl_s", "num_running", "expected_s"),
    [
        (0.0, 4, 0.05),
        (0.03, 0, 0.05),
        (0.03, 4, 0.01),
    ],
)
def test_a_prompt_waits_for_half_of_the_step_under_way(
    max_itl_s: float, num_running: int, expected_s: float
) -> None:
    nodes = Nodes()
    live = nodes.join("d0", load_of(num_running=num_running), chunk_tokens=100, max_itl_s=max_itl_s)
    assert step_under_way_s(live, 5.0) == pytest.approx(expected_s)
    assert step_under_way_s(live, 0.002) == pytest.approx(0.001)
