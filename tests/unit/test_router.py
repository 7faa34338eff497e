"""Where a request goes. All nodes compute 1,000 prompt tokens per second here."""

from __future__ import annotations

import pytest
from nodes import heartbeat, load_of, registry_of

from coordinator.cost import Assigned
from coordinator.registry import Registry
from coordinator.router import Demand, NoRoute, Route, Router
from protocol.ids import Node

IDLE = load_of()


def route(
    registry: Registry,
    owned: dict[str, int] | None = None,
    num_tokens: int = 1600,
    assigned: dict[str, Assigned] | None = None,
    avoid: tuple[str, ...] = (),
    local_prefill_max_tokens: int = 64,
) -> Route:
    pages = {Node(name, 1): count for name, count in (owned or {}).items()}
    demand = Demand(num_tokens, num_tokens // 16 + 8, pages)
    return Router(local_prefill_max_tokens).route(demand, registry, assigned or {}, avoid)


def names(chosen: Route) -> tuple[str | None, str]:
    return (chosen.prefill.name if chosen.prefill else None, chosen.decode.name)


def test_the_owner_of_the_prefix_computes_the_rest() -> None:
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE})
    chosen = route(registry, owned={"p1": 50})
    assert names(chosen) == ("p1", "d0")
    assert chosen.uncached_tokens == 1600 - 50 * 16
    assert "50 of 100 pages cached there" in chosen.reason


def test_the_longest_match_loses_when_its_queue_is_too_long() -> None:
    """A match of 20 pages saves 0.32 s, counted three times; 2 s of queue are more."""
    registry = registry_of({"p0": load_of(queued_tokens=2000), "p1": IDLE, "d0": IDLE})
    assert names(route(registry, owned={"p0": 20})) == ("p1", "d0")


def test_a_short_queue_does_not_outweigh_a_long_match() -> None:
    registry = registry_of({"p0": load_of(queued_tokens=500), "p1": IDLE, "d0": IDLE})
    assert names(route(registry, owned={"p0": 90})) == ("p0", "d0")


def test_work_that_was_sent_since_the_heartbeat_counts() -> None:
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE})
    sent = {"p0": Assigned(prompt_tokens=5000, requests=1)}
    assert names(route(registry, owned={"p0": 20}, assigned=sent)) == ("p1", "d0")


def test_decode_node_that_has_the_pages_needs_fewer_moved() -> None:
    registry = registry_of({"p0": IDLE, "d0": IDLE, "d1": IDLE})
    assert names(route(registry, owned={"d1": 60})) == ("p0", "d1")


def test_a_full_decode_node_is_avoided() -> None:
    registry = registry_of({"p0": IDLE, "d0": load_of(num_running=8), "d1": load_of(num_running=3)})
    assert names(route(registry)) == ("p0", "d1")


def test_short_remainders_are_computed_where_they_are_answered() -> None:
    registry = registry_of({"p0": IDLE, "d0": IDLE})
    assert names(route(registry, owned={"d0": 99})) == (None, "d0")
    assert names(route(registry, owned={"d0": 99}, local_prefill_max_tokens=0)) == ("p0", "d0")


def test_without_prefill_nodes_decode_nodes_compute() -> None:
    registry = registry_of({"d0": IDLE, "d1": IDLE})
    chosen = route(registry, owned={"d1": 10})
    assert names(chosen) == (None, "d1")
    assert "d1 prefills for itself" in chosen.reason


def test_nodes_that_failed_are_avoided_while_there_are_others() -> None:
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE})
    assert names(route(registry, owned={"p0": 90}, avoid=("p0", "d0"))) == ("p1", "d0")


def test_when_all_prefill_nodes_failed_decode_computes() -> None:
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE})
    assert names(route(registry, owned={"p0": 90}, avoid=("p0", "p1"))) == (None, "d0")


def test_nodes_that_are_too_small_are_no_candidates() -> None:
    """A prompt of 100 pages with 8 for its answer."""
    registry = registry_of({"p0": IDLE, "d0": IDLE})
    registry.heartbeat(heartbeat("prefill", Node("p1", 1), num_pages=99), 0.0)
    registry.heartbeat(heartbeat("decode", Node("d1", 1), num_pages=107), 0.0)
    assert names(route(registry, owned={"p1": 90, "d1": 90})) == ("p0", "d0")
    with pytest.raises(NoRoute, match="room for 1008 pages"):
        route(registry, num_tokens=16_000)


def test_no_decode_node() -> None:
    with pytest.raises(NoRoute, match="no decode node"):
        route(registry_of({"p0": IDLE}))


def test_ties_go_to_the_less_loaded() -> None:
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE})
    assert names(route(registry, assigned={"p0": Assigned(0, 1)})) == ("p1", "d0")


def test_a_prompt_never_hits_the_page_of_its_last_token() -> None:
    registry = registry_of({"p0": IDLE, "d0": IDLE})
    chosen = route(registry, owned={"p0": 100}, num_tokens=1600)
    assert chosen.uncached_tokens == 16
