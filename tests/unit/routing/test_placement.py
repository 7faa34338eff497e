"""What is booked, who is thought to own what, and what several coordinators do side by side."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.routing.expected_pages import KEPT_S
from coordinator.routing.policies import POLICIES
from coordinator.routing.prices.planned import PlannedWork
from coordinator.routing.route import NoRoute, Route
from protocol.ids import Node
from tests.support.coordinator.nodes import Nodes, booked, demand_of, load_of

P0, P1, D0 = Node("p0", 1), Node("p1", 1), Node("d0", 1)
LONG = 1600
LONG_S = 1.61


def place(nodes: Nodes, request_id: str, chain: str = "", now: float = 0.0) -> Route:
    work = demand_of(LONG, chain)
    route = nodes.placement.route(work, now)
    nodes.book(request_id, work, route, now)
    return route


def test_the_next_turn_follows_the_first_before_any_event() -> None:
    nodes = Nodes("p0", "p1", "p2", "d0")
    first = place(nodes, "a", "chat")
    nodes.ended("a", 1.0)
    longer = demand_of(LONG + 160, "chat")
    second = nodes.placement.route(longer, 1.0)
    assert second.prefill == first.prefill and second.cached_pages == 100
    assert second.fetch_from is None


def test_the_node_that_answers_is_expected_to_own_the_prompt_too() -> None:
    nodes = Nodes("p0", "d0", "d1")
    first = place(nodes, "a", "chat")
    candidates, _ = nodes.placement.explain(demand_of(LONG, "chat"), 0.0)
    owned = {c.live.node: c.owned_pages for c in candidates.decode}
    assert owned == {D0: 0, Node("d1", 1): 0} | {first.decode: 99}


def test_an_expected_prefix_is_forgotten_unless_an_event_confirms_it() -> None:
    nodes = Nodes("p0", "d0")
    place(nodes, "a", "chat")
    nodes.ended("a", 1.0)
    later = 2.1 * KEPT_S
    assert nodes.placement.route(demand_of(LONG, "chat"), later).cached_pages == 0
    nodes.index.stored(P0, demand_of(LONG, "chat").hashes)
    assert nodes.placement.route(demand_of(LONG, "chat"), later).cached_pages == 99


def test_what_a_failed_attempt_was_to_bring_is_expected_no_more() -> None:
    """Else the retry goes where nothing has to be computed, so it seems, and everything has. What
    a node has told that it has still counts."""
    nodes = Nodes("p0", "d0")
    route = place(nodes, "a", "chat")
    for has_told in (False, True):
        if has_told:
            nodes.placement.has_prompt(P0, demand_of(LONG, "chat"), 0.0)
        nodes.failed("a", route, 0.0)
        candidates, _ = nodes.placement.explain(demand_of(LONG, "chat"), 0.0)
        owned = {c.live.node: c.owned_pages for c in [*candidates.prefill, *candidates.decode]}
        assert owned == {P0: 99 if has_told else 0, D0: 0}
    assert booked(nodes.placement) == {}


def test_a_prefix_that_was_removed_is_expected_no_more() -> None:
    """As by a flush, right after the request that was to bring it."""
    nodes = Nodes("p0", "d0")
    place(nodes, "a", "chat")
    hashes = demand_of(LONG, "chat").hashes
    nodes.index.stored(P0, hashes)
    nodes.index.removed(P0, hashes[40:])
    assert nodes.placement.route(demand_of(LONG, "chat"), 1.0).cached_pages == 40


def test_a_prompt_is_booked_until_its_first_token_and_its_answer_until_the_end() -> None:
    nodes = Nodes("p0", "d0")
    place(nodes, "a")
    assert booked(nodes.placement) == {"p0": (1, LONG_S), "d0": (1, 0.0)}
    assert nodes.placement.busy_s(0.0) == [LONG_S]
    for _ in range(2):
        nodes.computed("a", 1.0)
        assert booked(nodes.placement) == {"d0": (1, 0.0)}
        assert nodes.placement.busy_s(1.0) == []
    for _ in range(2):
        nodes.ended("a", 2.0)
        assert booked(nodes.placement) == {}


def test_a_node_that_does_both_counts_a_request_once() -> None:
    nodes = Nodes("d0")
    place(nodes, "a")
    assert booked(nodes.placement) == {"d0": (1, 1.6)}
    nodes.computed("a", 1.0)
    assert booked(nodes.placement) == {"d0": (1, 0.0)}
    nodes.ended("a", 1.0)
    assert booked(nodes.placement) == {}


def test_a_new_life_of_a_node_starts_with_nothing() -> None:
    """A request that the older life computed ends after the restart."""
    nodes = Nodes("p0", "d0")
    place(nodes, "a", "chat")
    nodes.computed("a", 1.0)
    live = nodes.join("p0", now=2.0, incarnation=2)
    nodes.placement.forget(P0)
    nodes.placement.heard(live, 2.0)
    nodes.ended("a", 3.0)
    assert nodes.placement.queues["p0"].num_requests == 0
    again = nodes.placement.route(demand_of(LONG, "chat"), 3.0)
    assert again.prefill == Node("p0", 2) and again.cached_pages == 0


def test_planned_work_counts_where_it_is_planned() -> None:
    nodes = Nodes("p0", "p1", "d0")
    for _ in range(5):
        assert nodes.placement.route(demand_of(LONG), 0.0, PlannedWork({"p0": [1.0]})).prefill == P1


def test_heartbeats_of_other_coordinators_work() -> None:
    nodes = Nodes("p0", "p1", "d0")
    nodes.heard("p0", load_of(queued_tokens=3000), 0.0)
    assert nodes.placement.busy_s(1.0) == [2.0]
    assert nodes.placement.free_in_s(1.0) == 0.0
    assert nodes.placement.queue_s(P0, 1.0) == 2.0
    assert nodes.placement.queue_s(P1, 1.0) == 0.0
    assert nodes.placement.route(demand_of(LONG), 1.0).prefill == P1


def test_decode_nodes_compute_when_there_is_no_other() -> None:
    nodes = Nodes("d0", "d1")
    nodes.heard("d1", load_of(queued_tokens=500), 0.0)
    assert nodes.placement.busy_s(0.0) == [0.5]
    nodes.join("p0")
    assert nodes.placement.busy_s(0.0) == []
    nodes.placement.draining = frozenset({"p0"})
    assert nodes.placement.busy_s(0.0) == [0.5] and nodes.placement.free_in_s(0.0) == 0.0
    nodes.heard("d0", load_of(queued_tokens=200), 0.0)
    assert (
        sorted(nodes.placement.busy_s(0.0)) == [0.2, 0.5] and nodes.placement.free_in_s(0.0) == 0.2
    )


def test_the_least_work_that_a_prompt_can_be() -> None:
    nodes = Nodes("p0", "d0")
    work = demand_of(LONG, "a")
    assert nodes.placement.assess(work, 0.0)[0] == pytest.approx(LONG_S)
    nodes.index.stored(D0, work.hashes[:60])
    assert nodes.placement.assess(work, 0.0)[0] == pytest.approx(0.01 + 0.64)
    nodes.index.stored(D0, work.hashes)
    assert nodes.placement.assess(work, 0.0)[0] == pytest.approx(0.011)
    assert Nodes().placement.assess(work, 0.0) == (0.0, False)


def test_room_is_that_of_the_largest_node_that_takes_requests() -> None:
    nodes = Nodes()
    placement = nodes.placement
    assert placement.most_pages == 0
    nodes.join("p0", num_pages=50)
    nodes.join("d1", num_pages=101)
    placement.require_room(demand_of(LONG))
    with pytest.raises(NoRoute):
        placement.require_room(demand_of(LONG + 16))
    placement.draining = frozenset({"d1"})
    with pytest.raises(NoRoute, match="room for 101 pages"):
        placement.require_room(demand_of(LONG))


def test_long_answers_share_a_pool_until_their_admissions_fill_it() -> None:
    """Each may take all of the 30 pages, and is booked with the ten that it needs to begin."""
    nodes = Nodes()
    nodes.join("p0", num_pages=30)
    nodes.join("d0", load_of(free_pages=30), num_pages=30)
    placement, work = nodes.placement, demand_of(9 * 16, answer_pages=21)
    placement.require_room(work)
    for i in range(3):
        route = placement.route(work, 0.0)
        assert placement.has_room(route, work.admission_pages, PlannedWork())
        nodes.book(str(i), work, route, 0.0)
    assert not placement.has_room(route, work.admission_pages, PlannedWork())
    nodes.ended("1", 0.0)
    assert placement.has_room(route, work.admission_pages, PlannedWork())
    with pytest.raises(NoRoute, match="room for 31 pages"):
        placement.require_room(demand_of(9 * 16, answer_pages=22))


def test_pages_that_a_node_has_promised_are_no_room() -> None:
    nodes = Nodes("p0")
    work = demand_of(9 * 16)
    for free, cached, promised, has_room in ((8, 9, 7, True), (8, 9, 8, False), (5, 5, 11, False)):
        load = msgspec.structs.replace(
            load_of(free_pages=free), cached_pages=cached, promised_pages=promised
        )
        nodes.join("d0", load)
        route = nodes.placement.route(work, 0.0)
        assert nodes.placement.has_room(route, work.admission_pages, PlannedWork()) == has_room


def test_explaining_books_nothing_and_agrees_with_routing() -> None:
    nodes = Nodes("p0", "p1", "d0")
    nodes.index.stored(P1, demand_of(LONG, "a").hashes[:50])
    candidates, explained = nodes.placement.explain(demand_of(LONG, "a"), 0.0)
    assert [c.live.node for c in candidates.prefill] == [P0, P1]
    assert [c.live.node for c in candidates.decode] == [D0]
    assert explained == nodes.placement.route(demand_of(LONG, "a"), 0.0)
    assert booked(nodes.placement) == {}


@pytest.mark.parametrize("policy", POLICIES)
def test_explaining_takes_no_turn_and_no_chance(policy: str) -> None:
    nodes, asked = (Nodes("p0", "p1", "p2", "d0", "d1", policy=policy) for _ in range(2))
    for i in range(6):
        asked.placement.explain(demand_of(LONG), 10.0 * i)
        assert place(asked, str(i), now=10.0 * i) == place(nodes, str(i), now=10.0 * i)


def test_the_share_of_hits_follows_what_is_dispatched() -> None:
    nodes = Nodes("p0", "d0")
    assert nodes.placement.hit_share == 0.0
    place(nodes, "a", "chat")
    assert nodes.placement.hit_share == 0.0
    for i in range(200):
        place(nodes, f"b{i}", "chat", float(i))
        nodes.ended(f"b{i}", float(i))
    assert 0.9 < nodes.placement.hit_share < 1.0


def test_coordinators_of_different_seeds_spread_over_idle_nodes() -> None:
    """Each sees only the nodes' heartbeats of the others, and these are all idle."""
    names = [f"p{i}" for i in range(8)]
    coordinators = [Nodes(*names, "d0", seed=seed) for seed in range(1, 33)]
    first = [place(nodes, "a").computes.name for nodes in coordinators]
    assert len(set(first)) >= 6
    assert max(first.count(name) for name in names) <= 12
    for nodes in coordinators:  # and each of them goes round before it comes again
        nodes.ended("a", 0.0)
        more = []
        for i in range(7):
            more.append(place(nodes, str(i), now=100.0 + i).computes.name)
            nodes.ended(str(i), 100.0 + i)
        assert len(set(more)) == 7
