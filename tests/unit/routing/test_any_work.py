"""Any node does any work, if that costs least. All nodes compute 1,000 prompt tokens per second."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from coordinator.routing.cost import DELAY_WEIGHT, spread
from coordinator.routing.registry import Registry
from coordinator.routing.router import KEPT_FOR_PROMPTS
from protocol.ids import Node
from protocol.messages import Load
from tests.support.coordinator.nodes import Nodes, heartbeat, load_of, registry_of
from tests.support.coordinator.nodes import demand_of as demand_at_nodes
from tests.support.coordinator.routes import (
    IDLE,
    cluster_of,
    demand_of,
    names,
    owners_of,
    route,
    router_of,
)


def mixed(registry: Registry, **other: Any) -> tuple[str | None, str]:
    return names(route(registry, policy="cost", **other))


def one_pair(decode: Load, **info: object) -> Registry:
    registry = registry_of({"p0": IDLE})
    registry.heartbeat(heartbeat("decode", Node("d0", 1), decode, **info), 0.0)
    return registry


# A decode node computes


def test_an_idle_decode_node_computes_what_it_answers() -> None:
    """Nothing has to be sent then. A policy that leaves nodes to their roles sends it."""
    registry = registry_of({"p0": IDLE, "d0": IDLE})
    assert mixed(registry) == (None, "d0")
    assert names(route(registry)) == ("p0", "d0")


@pytest.mark.parametrize(("num_running", "computes"), [(2, "d0"), (6, "p0")])
def test_the_delay_of_all_who_are_answered_there_is_weighed_against_the_queue(
    num_running: int, computes: str
) -> None:
    """1.6 s of computing delay each answer by so much; a tenth of that counts, and the queue of the
    prefill node is 0.6 s."""
    registry = one_pair(load_of(num_running=num_running))
    chosen = route(registry, queues_s={"p0": 0.6}, policy="cost")
    assert chosen.computes.name == computes
    if computes == "d0":
        assert chosen.cost.delay_s == pytest.approx(1.6 * num_running)
        assert chosen.cost.score == pytest.approx(
            3 * 1.6 + chosen.cost.wait_s + DELAY_WEIGHT * chosen.cost.delay_s
        )


def test_a_short_prompt_passes_a_long_one_by_way_of_the_decode_node() -> None:
    """The prefill node has 0.5 s to compute, and 7 are answered at the decode node."""
    registry = one_pair(load_of(num_running=7))
    for num_tokens, computes in ((100, None), (1600, "p0")):
        assert mixed(registry, num_tokens=num_tokens, queues_s={"p0": 0.5})[0] == computes


def test_what_the_decode_node_has_already_need_not_be_computed() -> None:
    """Beside seven answers a whole prompt would be too much."""
    registry = one_pair(load_of(num_running=7))
    assert mixed(registry, owned={"d0": 99, "p0": 99}) == (None, "d0")
    assert mixed(registry) == ("p0", "d0")


def test_bounded_steps_make_the_prompt_take_longer_there() -> None:
    """A step takes 10 ms. Of 12.5 ms a chunk would have 2.5, but the least one takes 16 ms."""
    for max_itl_s, times in ((0.0, 1.0), (0.11, 1.1), (0.0125, 1 + 10 / 16)):
        nodes = Nodes()
        assert spread(nodes.join("d0", IDLE, max_itl_s=max_itl_s)) == pytest.approx(times)
        registry = one_pair(load_of(num_running=1), max_itl_s=max_itl_s)
        candidates = router_of("cost").candidates(
            demand_of(), owners_of(), cluster_of(registry, {"d0": 1.0})
        )
        (both,) = candidates.both
        assert both.cost.queue_s == pytest.approx(times)
        first_token_s = times * 2.6 + 0.01 + 0.01 * (1 + 1 / 8)
        assert both.cost.first_token_s == pytest.approx(first_token_s)


def test_prompts_that_wait_for_a_prefill_node_make_room_for_others_at_a_decode_node() -> None:
    """The long one is next at p0, so the short one goes to the other node at once."""
    nodes = Nodes("p0", policy="cost")
    nodes.join("d0", load_of(num_running=6))
    nodes.heard("p0", load_of(queued_tokens=900), 0.0)
    nodes.wait("long", demand_at_nodes(4000), 0.0)
    assert nodes.dispatch(0.0) == []
    nodes.wait("short", demand_at_nodes(50), 0.1)
    ((name, chosen),) = nodes.dispatch(0.1)
    assert (name, names(chosen)) == ("short", (None, "d0"))


# A prefill node answers


@pytest.mark.parametrize("policy", ["cost", "disaggregate", "round-robin"])
def test_prefill_nodes_answer_when_no_decode_node_is_left(policy: str) -> None:
    registry = registry_of({"p0": IDLE})
    assert names(route(registry, policy=policy)) == (None, "p0")
    registry = registry_of({"p0": IDLE, "d0": IDLE})
    assert names(route(registry, policy=policy, avoid=("d0",))) == (None, "p0")
    assert names(route(registry, policy=policy, avoid=("p0", "d0"))) == (None, "d0")


FULL = load_of(num_running=8)
NO_PAGES = load_of(free_pages=9)


@pytest.mark.parametrize("full", [FULL, NO_PAGES])
def test_prefill_nodes_answer_while_every_decode_node_is_full(full: Load) -> None:
    assert mixed(registry_of({"p0": IDLE, "d0": full})) == (None, "p0")
    assert mixed(registry_of({"p0": IDLE, "d0": full, "d1": IDLE}))[1] == "d1"
    assert names(route(registry_of({"p0": IDLE, "d0": full}))) == ("p0", "d0")


def test_a_prefill_node_keeps_pages_for_prompts() -> None:
    """The request begins with 101 pages; of 1,000 some are left for prompts."""
    kept = int(KEPT_FOR_PROMPTS * 1000)
    for free_pages, answers in ((kept + 101, "p0"), (kept + 100, "d0")):
        registry = registry_of({"p0": load_of(free_pages=free_pages), "d0": FULL})
        assert mixed(registry)[1] == answers


def test_a_request_is_sent_to_a_prefill_node_at_once_when_decode_nodes_are_full() -> None:
    nodes = Nodes("p0", policy="cost")
    nodes.join("d0", msgspec.structs.replace(FULL, num_waiting=8))
    nodes.wait("a", demand_at_nodes(160), 0.0)
    ((_, chosen),) = nodes.dispatch(0.0)
    assert names(chosen) == (None, "p0")


def test_requests_that_only_a_prefill_node_has_room_for_go_there() -> None:
    nodes = Nodes("p0", policy="cost")
    nodes.join("d0", num_pages=50)
    work = demand_at_nodes(1600)
    nodes.placement.require_room(work)
    nodes.wait("a", work, 0.0)
    ((_, chosen),) = nodes.dispatch(0.0)
    assert names(chosen) == (None, "p0")
