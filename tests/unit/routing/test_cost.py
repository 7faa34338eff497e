"""The terms of a route's cost. A page is 16 tokens; nodes compute 1,000 of them per second."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.routing import cost
from coordinator.routing.cost import ANSWER_STEPS, HOP_S, OWN_WORK_WEIGHT, Cost
from coordinator.routing.registry import DEFAULT_PREFILL_TOKENS_PER_S, LiveNode
from protocol.messages import Load
from tests.support.nodes import LAYOUT, Nodes, load_of

terms = st.floats(0.0, 1e6)
costs = st.builds(Cost, terms, terms, terms, terms, terms, terms)


def live(load: Load, **info: object) -> LiveNode:
    return Nodes().join("d0", load, **info)  # type: ignore[arg-type]


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


@given(num_running=st.integers(0, 40), more=st.integers(1, 8), num_pages=st.integers(0, 2000))
def test_waiting_grows_with_what_is_there(num_running: int, more: int, num_pages: int) -> None:
    node = live(load_of())
    few_s = cost.wait_s(node, num_running, num_pages)
    assert 0.0 < few_s < cost.wait_s(node, num_running + more, num_pages)
    assert few_s <= cost.wait_s(node, num_running, num_pages + more)
    busy = live(load_of(num_running=num_running))
    assert cost.wait_s(busy, 0, num_pages) == few_s, "heartbeats count as our own requests do"


def test_a_node_without_a_place_or_pages_makes_wait_for_an_answer() -> None:
    answer_s = 0.01 * ANSWER_STEPS
    assert cost.wait_s(live(load_of()), 7, 1000) < 0.02
    assert cost.wait_s(live(load_of()), 8, 1000) >= answer_s
    assert cost.wait_s(live(load_of()), 0, 1001) >= answer_s
    cached = msgspec.structs.replace(load_of(), cached_pages=1)
    assert cost.wait_s(live(cached), 0, 1001) < 0.02, "what is only cached makes room"


def test_waiting_at_a_node_that_has_measured_nothing() -> None:
    assert 0.0 < cost.wait_s(live(Load(role="decode", free_pages=9)), 0, 9) < 1.0
