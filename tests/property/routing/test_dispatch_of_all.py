"""Every waiting request is dispatched once and in time, whatever else comes.

A prompt of n tokens takes 10 ms + n ms here.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.routing import dispatch
from coordinator.routing.dispatch import (
    PATIENCE_GOALS,
)
from protocol.ids import Node
from tests.support.coordinator.nodes import Nodes, demand_of


def names(nodes: Nodes, now: float) -> list[str]:
    return [request_id for request_id, _ in nodes.dispatch(now)]


def simulate(
    nodes: Nodes, arrivals: Iterator[tuple[float, str, int]], until: Callable[[str], bool]
) -> dict[str, float]:
    """When each request was dispatched, until one is for which `until` holds, or to the end.

    Nodes compute one prompt after another, in exactly the time that was estimated.
    """
    dispatched: dict[str, float] = {}
    ends: list[tuple[float, str]] = []
    free_at: dict[Node, float] = {}
    arrival = next(arrivals, None)
    now = look_at = 0.0
    while arrival or ends or len(nodes.queue):
        now = min(look_at, arrival[0] if arrival else look_at, ends[0][0] if ends else look_at)
        assert now < float("inf"), "requests wait, and nobody will look"
        while ends and ends[0][0] <= now:
            nodes.ended(heapq.heappop(ends)[1], now)
        while arrival and arrival[0] <= now:
            nodes.wait(arrival[1], demand_of(arrival[2]), arrival[0])
            arrival = next(arrivals, None)
        for request_id, route in nodes.dispatch(now):
            assert request_id not in dispatched
            dispatched[request_id] = now
            if until(request_id):
                return dispatched
            start = max(now, free_at.get(route.computes, now))
            free_at[route.computes] = start + route.busy_s
            heapq.heappush(ends, (start + route.busy_s, request_id))
        wait_s = nodes.queue.dispatch_in_s(now)
        look_at = now + wait_s if wait_s is not None else float("inf")
    return dispatched


@given(
    num_tokens=st.lists(st.integers(1, 3000), min_size=1, max_size=60),
    num_nodes=st.integers(1, 4),
    removed=st.sets(st.integers(0, 59)),
    seed=st.integers(0, 1000),
)
def test_each_is_dispatched_once_unless_it_is_removed(
    num_tokens: list[int], num_nodes: int, removed: set[int], seed: int
) -> None:
    nodes = Nodes(*(f"p{i}" for i in range(num_nodes)), "d0", seed=seed)
    for i, count in enumerate(num_tokens):
        nodes.wait(str(i), demand_of(count), 0.0)
    for i in removed:
        nodes.remove(str(i))
    wanted = {str(i) for i in range(len(num_tokens)) if i not in removed}
    assert {str(i) for i in range(60) if nodes.waits(str(i))} == wanted
    dispatched = simulate(nodes, iter([]), lambda _: False) if wanted else {}
    assert dispatched.keys() == wanted
    assert nodes.queue.dispatch_in_s(0.0) is None and names(nodes, 1e9) == []


@given(
    arrivals=st.lists(
        st.tuples(st.floats(0.0, 20.0), st.integers(1, 4000)), min_size=1, max_size=60
    ),
    num_nodes=st.integers(0, 3),
)
def test_everything_is_dispatched_by_the_time_that_the_work_takes(
    arrivals: list[tuple[float, int]], num_nodes: int
) -> None:
    nodes = Nodes(*(f"p{i}" for i in range(num_nodes)), "d0")
    arrivals.sort()
    named = [(at, str(i), num_tokens) for i, (at, num_tokens) in enumerate(arrivals)]
    dispatched = simulate(nodes, iter(named), lambda _: False)
    assert len(dispatched) == len(arrivals)
    work_s = sum(0.01 + num_tokens / 1000 for _, num_tokens in arrivals)
    assert max(dispatched.values()) <= arrivals[-1][0] + work_s + 0.1
    for at, name, _ in named:
        assert dispatched[name] >= at


@given(num_short=st.integers(1, 20), short_tokens=st.integers(90, 400), seed=st.integers(0, 99))
def test_a_long_request_is_dispatched_however_many_short_ones_come(
    num_short: int, short_tokens: int, seed: int
) -> None:
    """For each that is dispatched another one comes: `num_short` always wait, for ever. Who has
    waited for PATIENCE_GOALS goals goes first, and the goal is at most the long one's work."""
    nodes, chance = Nodes("p0", "d0"), random.Random(seed)
    short_s = 0.01 + short_tokens / 1000
    long_s = 2.0

    def arrivals() -> Iterator[tuple[float, str, int]]:
        """As many as are waiting, and then one for each that the node can compute."""
        for i in range(num_short):
            yield 0.0, f"first{i}", short_tokens
        yield 0.0, "long", round(1000 * long_s) - 10
        i = 0
        while True:
            i += 1
            yield short_s * (i + chance.random()), str(i), short_tokens

    dispatched = simulate(nodes, arrivals(), lambda name: name == "long")
    assert dispatched["long"] <= PATIENCE_GOALS * long_s + 2 * short_s


@given(observed=st.lists(st.floats(0.0, 100.0), max_size=60), window=st.integers(1, 20))
def test_the_goal_is_a_quantile_of_the_last_prompts(observed: list[float], window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "GOAL_WINDOW", window)
        goal = dispatch._Goal()
        assert goal.seconds == 0.0
        for i, seconds in enumerate(observed):
            goal.observe(seconds)
            last = sorted(observed[max(0, i + 1 - window) : i + 1])
            assert goal.seconds == last[int(0.99 * len(last))]
