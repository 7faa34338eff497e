"""The terms of a route's cost. A page is 16 tokens; nodes compute 1,000 of them per second."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.routing import cost
from coordinator.routing.cost import ANSWER_STEPS, HOP_S, Cost
from coordinator.routing.registry import DEFAULT_PREFILL_TOKENS_PER_S, LiveNode
from protocol.messages import Load
from tests.support.coordinator.nodes import LAYOUT, Nodes, load_of


def live(load: Load, **info: object) -> LiveNode:
    return Nodes().join("d0", load, **info)  # type: ignore[arg-type]


def test_a_fetch_and_the_queue_overlap() -> None:
    assert Cost(queue_s=2.0, fetch_s=1.5, compute_s=1.0).first_token_s == 3.0
    assert Cost(queue_s=2.0, fetch_s=2.5, compute_s=1.0).first_token_s == 3.5


def test_computing_takes_a_step_and_at_least_one_token() -> None:
    node = live(load_of())
    assert cost.compute_s(node, 500) == pytest.approx(0.51)
    assert cost.compute_s(node, 1) == cost.compute_s(node, 0) == cost.compute_s(node, -5)
    assert cost.compute_s(live(Load(role="decode")), 500) == 500 / DEFAULT_PREFILL_TOKENS_PER_S


def test_moving_pages_takes_two_messages_and_the_link() -> None:
    assert cost.move_s(3_000_000, 1e6) == pytest.approx(3.0 + 2 * HOP_S)
    assert cost.move_s(0, 1e6) == 2 * HOP_S


def test_eviction_costs_the_share_of_pages_that_would_have_been_hit() -> None:
    node = live(load_of(free_pages=10))
    assert cost.evict_s(node, 10, 0.5) == 0.0
    again_s = 0.5 * cost.EVICTED_REUSE * 11 * LAYOUT.page_size / 1000
    assert cost.evict_s(node, 11, 0.5) == pytest.approx(cost.OWN_WORK_WEIGHT * again_s)
    assert cost.evict_s(node, 11, 0.0) == 0.0


def test_a_node_without_a_place_or_pages_makes_wait_for_an_answer() -> None:
    answer_s = 0.01 * ANSWER_STEPS
    assert cost.wait_s(live(load_of()), 7, 1000) < 0.02
    assert cost.wait_s(live(load_of()), 8, 1000) >= answer_s
    assert cost.wait_s(live(load_of()), 0, 1001) >= answer_s
    cached = msgspec.structs.replace(load_of(), cached_pages=1)
    assert cost.wait_s(live(cached), 0, 1001) < 0.02, "what is only cached makes room"


def test_waiting_at_a_node_that_has_measured_nothing() -> None:
    assert 0.0 < cost.wait_s(live(Load(role="decode", free_pages=9)), 0, 9) < 1.0
