"""The terms of any route's cost add up and grow as they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.routing.cost import OWN_WORK_WEIGHT, Cost
from coordinator.routing.node_queue import NodeQueueEstimate
from coordinator.routing.prices import terms as prices
from coordinator.routing.prices.figures import NodeFigures
from protocol.messages import Load
from tests.support.coordinator.nodes import Nodes, load_of

terms = st.floats(0.0, 1e6)
costs = st.builds(Cost, terms, terms, terms, terms, terms, terms)


@given(costs)
def test_the_score_is_the_time_and_what_it_costs_others(one: Cost) -> None:
    extra_s = (OWN_WORK_WEIGHT - 1) * one.compute_s + one.evict_s
    assert one.score == pytest.approx(one.first_token_s + extra_s)
    assert one.first_token_s >= max(one.queue_s, one.fetch_s) + one.compute_s


@given(terms, terms, terms, terms, terms, terms)
def test_the_parts_of_two_nodes_add_up(
    queue_s: float,
    fetch_s: float,
    compute_s: float,
    transfer_s: float,
    wait_s: float,
    evict_s: float,
) -> None:
    prefill = Cost(queue_s=queue_s, fetch_s=fetch_s, compute_s=compute_s, evict_s=evict_s)
    decode = Cost(transfer_s=transfer_s, wait_s=wait_s, evict_s=evict_s)
    both = prefill + decode
    assert both.score == pytest.approx(prefill.score + decode.score)
    assert both.first_token_s == pytest.approx(prefill.first_token_s + decode.first_token_s)


def wait_s(load: Load, num_requests: int, num_pages: int) -> float:
    """Returns how long an answer waits at a node that has so many requests of this coordinator."""
    queue = NodeQueueEstimate()
    queue.num_requests = num_requests
    node = NodeFigures([Nodes().join("d0", load)], {"d0": queue}).all
    (waits_s,) = prices.wait_s(node, prices.is_full(node, np.array([num_pages])), 0.0)
    return float(waits_s)


@given(num_running=st.integers(0, 40), more=st.integers(1, 8), num_pages=st.integers(0, 2000))
def test_waiting_grows_with_what_is_there(num_running: int, more: int, num_pages: int) -> None:
    few_s = wait_s(load_of(), num_running, num_pages)
    assert 0.0 < few_s < wait_s(load_of(), num_running + more, num_pages)
    assert few_s <= wait_s(load_of(), num_running, num_pages + more)
    busy = load_of(num_running=num_running)
    assert wait_s(busy, 0, num_pages) == few_s, "heartbeats count as our own requests do"
