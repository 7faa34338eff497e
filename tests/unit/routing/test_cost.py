"""The terms of a route's cost. A page is 16 tokens; nodes compute 1,000 of them per second."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from coordinator.routing.cost import (
    ANSWER_STEPS,
    EVICTED_REUSE,
    HOP_S,
    OWN_WORK_WEIGHT,
    Cost,
    Floats,
    Terms,
)
from coordinator.routing.node_queue import NodeQueueEstimate
from coordinator.routing.prices import terms
from coordinator.routing.prices.figures import Figures, NodeFigures
from coordinator.routing.registry import DEFAULT_PREFILL_TOKENS_PER_S
from protocol.messages import Load
from tests.support.coordinator.nodes import LAYOUT, Nodes, load_of


def figures(load: Load, num_requests: int = 0) -> Figures[Floats]:
    """Of one node that has so many requests of this coordinator."""
    queue = NodeQueueEstimate()
    queue.num_requests = num_requests
    return NodeFigures([Nodes().join("d0", load)], {"d0": queue}).all


def wait_s(load: Load, num_requests: int, num_pages: int) -> float:
    node = figures(load, num_requests)
    (waits_s,) = terms.wait_s(node, terms.is_full(node, np.array([num_pages])), 0.0)
    return float(waits_s)


def test_a_fetch_and_the_queue_overlap() -> None:
    assert Cost(queue_s=2.0, fetch_s=1.5, compute_s=1.0).first_token_s == 3.0
    assert Cost(queue_s=2.0, fetch_s=2.5, compute_s=1.0).first_token_s == 3.5


def test_computing_takes_a_step_and_the_tokens() -> None:
    assert terms.compute_s(figures(load_of()), 500) == pytest.approx(0.51)
    unmeasured = figures(Load(role="decode"))
    assert terms.compute_s(unmeasured, 500) == 500 / DEFAULT_PREFILL_TOKENS_PER_S


def test_moving_pages_takes_two_messages_and_the_link() -> None:
    num_bytes = np.array([3_000_000.0, 0.0])
    assert terms.move_s(num_bytes, 1e6) == pytest.approx([3.0 + 2 * HOP_S, 2 * HOP_S])


def test_eviction_costs_the_share_of_pages_that_would_have_been_hit() -> None:
    node = figures(load_of(free_pages=10))

    def evict_s(num_new_pages: float, hit_share: float) -> Terms:
        return terms.evict_s(node, np.array([num_new_pages]), LAYOUT.page_size, hit_share)

    assert evict_s(10, 0.5) == 0.0
    again_s = 0.5 * EVICTED_REUSE * 11 * LAYOUT.page_size / 1000
    assert evict_s(11, 0.5) == pytest.approx(OWN_WORK_WEIGHT * again_s)
    assert evict_s(11, 0.0) == 0.0


def test_a_node_without_a_place_or_pages_makes_wait_for_an_answer() -> None:
    answer_s = 0.01 * ANSWER_STEPS
    assert wait_s(load_of(), 7, 1000) < 0.02
    assert wait_s(load_of(), 8, 1000) >= answer_s
    assert wait_s(load_of(), 0, 1001) >= answer_s
    cached = msgspec.structs.replace(load_of(), cached_pages=1)
    assert wait_s(cached, 0, 1001) < 0.02, "what is only cached makes room"


def test_waiting_at_a_node_that_has_measured_nothing() -> None:
    assert 0.0 < wait_s(Load(role="decode", free_pages=9), 0, 9) < 1.0
