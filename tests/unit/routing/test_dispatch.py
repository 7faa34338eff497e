"""When waiting requests are bound to a node, and in which order.

A prompt of n tokens takes 10 ms + n ms here.
"""

from __future__ import annotations

import msgspec
import pytest

from coordinator.routing.dispatch import (
    DISPATCH_AHEAD_S,
    LOOK_AHEAD,
    MAX_WAIT_S,
    PATIENCE_GOALS,
    PRIORITY_PATIENCE_S,
    VAIN_PAUSE_S,
)
from protocol.ids import Node
from tests.support.coordinator.nodes import LAYOUT, Nodes, demand_of, load_of


def busy(nodes: Nodes, name: str, seconds: float, now: float = 0.0) -> None:
    nodes.heard(name, load_of(queued_tokens=round(seconds * 1000)), now)


def names(nodes: Nodes, now: float) -> list[str]:
    return [request_id for request_id, _ in nodes.dispatch(now)]


def expect(nodes: Nodes, work_s: float) -> None:
    """The goal becomes what recent prompts take."""
    for i in range(100):
        nodes.wait(f"recent{i}", demand_of(round(work_s * 1000) - 10), 0.0)
        nodes.remove(f"recent{i}")


def test_a_node_gets_its_next_prompt_shortly_before_it_is_free() -> None:
    nodes = Nodes("p0", "d0")
    busy(nodes, "p0", 2.0)
    nodes.wait("a", demand_of(100), 0.0)
    assert names(nodes, 0.0) == []
    assert nodes.queue.dispatch_in_s(0.0) == MAX_WAIT_S
    now = 2.0 - DISPATCH_AHEAD_S - 0.01
    assert nodes.queue.dispatch_in_s(now) == pytest.approx(0.01)
    assert names(nodes, now) == []
    ((request_id, route),) = nodes.dispatch(now + 0.011)
    assert (request_id, route.prefill) == ("a", Node("p0", 1))
    assert len(nodes.queue) == 0 and nodes.queue.dispatch_in_s(3.0) is None


def test_what_is_sent_counts_for_the_next() -> None:
    nodes = Nodes("p0", "p1", "d0")
    for name in "abc":
        nodes.wait(name, demand_of(1000), 0.0)
    assert len(names(nodes, 0.0)) == 2
    assert names(nodes, 0.5) == []
    assert len(names(nodes, 0.97)) == 1


def test_short_requests_overtake_long_ones() -> None:
    nodes = Nodes("p0", "d0")
    busy(nodes, "p0", 1.0)
    nodes.wait("long", demand_of(4000), 0.0)
    nodes.wait("short", demand_of(100), 0.5)
    assert names(nodes, 1.0) == ["short"]


def test_who_has_waited_long_enough_is_not_overtaken() -> None:
    nodes = Nodes("p0", "d0")
    expect(nodes, 3.0)
    busy(nodes, "p0", 10.0)
    nodes.wait("long", demand_of(2000), 0.0)
    nodes.wait("short", demand_of(300), 9.9)
    assert names(nodes, 10.0) == ["long"]


def test_a_higher_priority_goes_first_until_a_lower_one_has_waited_too_long() -> None:
    for waited_s, is_overtaken in (
        (PRIORITY_PATIENCE_S - 0.1, True),
        (PRIORITY_PATIENCE_S + 0.1, False),
    ):
        nodes = Nodes("p0", "d0")
        nodes.wait("low", demand_of(100), 0.0, priority=-3)
        nodes.wait("none", demand_of(100), waited_s, priority=0)
        nodes.wait("high", demand_of(4000), waited_s, priority=2)
        assert names(nodes, waited_s)[0] == ("high" if is_overtaken else "low")


def test_a_request_about_to_miss_the_goal_goes_first_while_calm() -> None:
    """The goal is 1 s. In danger: 0.5 s waited and 0.3 s of work; the tiny one has the ratio."""
    for name, is_first in (("calm", "danger"), ("not calm", "tiny")):
        nodes = Nodes("p0", "d0")
        expect(nodes, 1.0)
        nodes.wait("danger", demand_of(290), 0.0)
        nodes.wait("tiny", demand_of(40), 0.1)
        if name == "not calm":
            nodes.wait("much", demand_of(400), 0.5)
        assert names(nodes, 0.5)[0] == is_first


@pytest.mark.parametrize(("later_s", "first"), [(0.05, "short"), (0.5, "long")])
def test_with_a_long_backlog_the_short_have_a_head_start_on_the_order_of_arrival(
    later_s: float, first: str
) -> None:
    """The work of those that may meet the goal is 0.82 s, so the short one gains 0.12 s."""
    nodes = Nodes("p0", "d0")
    expect(nodes, 1.0)
    nodes.wait("long", demand_of(600), 5.0)
    nodes.wait("short", demand_of(200), 5.0 + later_s)
    nodes.wait("more", demand_of(5000), 6.0)
    assert names(nodes, 6.0)[0] == first


@pytest.mark.parametrize("num_others", [1, 10])
def test_what_cannot_meet_the_goal_goes_last_until_it_has_waited_too_long(num_others: int) -> None:
    for waited_s, is_first in ((PATIENCE_GOALS - 0.1, False), (PATIENCE_GOALS + 0.1, True)):
        nodes = Nodes("p0", "d0")
        expect(nodes, 1.0)
        nodes.wait("hopeless", demand_of(1500), 0.0)
        for i in range(num_others):
            nodes.wait(f"other{i}", demand_of(900), waited_s)
        assert (names(nodes, waited_s)[0] == "hopeless") == is_first


def test_a_request_that_missed_the_goal_has_no_precedence() -> None:
    nodes = Nodes("p0", "d0")
    expect(nodes, 1.0)
    nodes.wait("missed", demand_of(290), -0.5)
    nodes.wait("tiny", demand_of(40), 0.1)
    assert names(nodes, 0.5)[0] == "tiny"


def test_a_first_one_that_waits_for_its_owner_does_not_keep_others_from_idle_nodes() -> None:
    """What p0 has is worth its queue, and too slow to fetch."""
    nodes = Nodes("p0", "d0")
    for name, queued_tokens in (("p0", 1000), ("p1", 0), ("d0", 0)):
        load = load_of(queued_tokens)
        slow = msgspec.structs.replace(load, link_bytes_per_s=LAYOUT.page_bytes / 0.1)
        nodes.heard(name, slow, 0.0)
    owned = demand_of(4000, "a")
    nodes.index.stored(Node("p0", 1), owned.hashes)
    nodes.wait("first", owned, -100.0)
    nodes.wait("second", demand_of(500), 0.0)
    ((request_id, route),) = nodes.dispatch(0.0)
    assert (request_id, route.prefill) == ("second", Node("p1", 1))
    assert nodes.waits("first") and not nodes.waits("second")
    assert names(nodes, 0.96) == ["first"]


def test_who_comes_after_does_not_count_on_a_node_that_is_promised() -> None:
    """The prefix on p0 is worth 0.5 s of queue to the second one, but not the first one's work."""
    nodes = Nodes()
    for name, queued_tokens in (("p0", 500), ("p1", 0), ("d0", 0)):
        slow = msgspec.structs.replace(
            load_of(queued_tokens), link_bytes_per_s=LAYOUT.page_bytes / 0.1
        )
        nodes.heard(name, slow, 0.0)
    first, second = demand_of(4000, "a"), demand_of(1000, "b")
    nodes.index.stored(Node("p0", 1), first.hashes[:100] + second.hashes[:20])
    nodes.wait("second", second, 0.0)
    assert names(nodes, 0.0) == []
    nodes.wait("first", first, -100.0)
    ((request_id, route),) = nodes.dispatch(VAIN_PAUSE_S)
    assert (request_id, route.prefill) == ("second", Node("p1", 1))


@pytest.mark.parametrize(("pages_per_s", "is_sent"), [(200, True), (2000, False)])
def test_a_fetch_as_long_as_the_queue_begins_at_once(pages_per_s: int, is_sent: bool) -> None:
    """249 pages for a node with 0.6 s to compute. A node that is free but too small lets the queue
    look at it."""
    nodes = Nodes("p0")
    link = pages_per_s * LAYOUT.page_bytes
    nodes.join("d0", msgspec.structs.replace(load_of(), link_bytes_per_s=link))
    nodes.join("p1", num_pages=10)
    busy(nodes, "p0", 0.6)
    work = demand_of(4000, "a")
    nodes.index.stored(Node("d0", 1), work.hashes)
    nodes.wait("a", work, 0.0)
    assert names(nodes, 0.0) == (["a"] if is_sent else [])


def test_what_has_no_room_holds_nobody_up() -> None:
    nodes = Nodes("p0", "d0")
    nodes.join("d1", num_pages=5000)
    for i in range(2 * LOOK_AHEAD):
        nodes.wait(f"large{i}", demand_of(32_000), -1000.0)
    nodes.leave("d1")
    nodes.wait("small", demand_of(100), 0.0)
    assert names(nodes, 0.0) == ["small"]
    assert len(nodes.queue) == 2 * LOOK_AHEAD
    nodes.join("d1", load_of(free_pages=5000), now=1.0, num_pages=5000)
    assert len(names(nodes, 1.0)) == 1


def test_without_nodes_it_waits() -> None:
    nodes = Nodes("d0")
    nodes.wait("a", demand_of(100), 0.0)
    nodes.leave("d0")
    assert names(nodes, 0.0) == []
    assert nodes.queue.dispatch_in_s(0.0) is not None
    nodes.join("d1")
    assert names(nodes, 0.1) == ["a"]


def test_at_most_so_many_are_looked_at() -> None:
    nodes = Nodes(*(f"p{i}" for i in range(LOOK_AHEAD + 5)))
    nodes.join("d0", max_running_requests=100)
    for i in range(LOOK_AHEAD + 5):
        nodes.wait(str(i), demand_of(300), 0.0)
    assert len(names(nodes, 0.0)) == LOOK_AHEAD
    assert len(names(nodes, 0.0)) == 5


@pytest.mark.parametrize("policy", ["round-robin", "least-loaded", "longest-prefix"])
def test_policies_that_do_not_weigh_costs_send_all_at_once_in_order(policy: str) -> None:
    nodes = Nodes("p0", "p1", "d0", policy=policy)
    for name in ("p0", "p1"):
        busy(nodes, name, 100.0)
    ids = [str(i) for i in range(3 * LOOK_AHEAD)]
    for i, request_id in enumerate(ids):
        nodes.wait(request_id, demand_of(1000 + 37 * i % 90), 0.0)
    assert names(nodes, 0.0) == ids
    assert nodes.queue.dispatch_in_s(0.0) is None


def test_after_a_look_in_vain_only_new_requests_are_looked_at() -> None:
    """The large one waits for pages of d0; a small one that comes right after goes to d1."""
    nodes = Nodes("p0", "p1")
    nodes.join("d0", load_of(free_pages=300))
    nodes.join("d1", load_of(free_pages=100), num_pages=100)
    nodes.wait("large", demand_of(8000), 0.0)
    assert names(nodes, 0.0) == []
    nodes.join("d0", load_of(free_pages=505))
    assert names(nodes, VAIN_PAUSE_S / 2) == [], "not at once"
    nodes.wait("small", demand_of(100), 0.0)
    ((request_id, route),) = nodes.dispatch(VAIN_PAUSE_S / 2)
    assert (request_id, route.decode.name) == ("small", "d1"), "pages of d0 are planned"
    assert names(nodes, VAIN_PAUSE_S) == ["large"]


def test_what_became_free_ends_the_pause() -> None:
    nodes = Nodes("p0")
    nodes.join("d0", load_of(free_pages=600))
    nodes.wait("first", demand_of(8000), 0.0)
    assert names(nodes, 0.0) == ["first"]
    nodes.wait("second", demand_of(8000), 0.0)
    assert names(nodes, 0.0) == [], "the pages are promised to the first"
    nodes.ended("first", 0.001)
    assert names(nodes, 0.001) == ["second"]


def test_promised_pages_are_not_promised_twice() -> None:
    """Two requests of 510 pages, two decode nodes with 1000 each, before any heartbeat."""
    nodes = Nodes("p0", "d0", "d1")
    routes = []
    for i in range(2):
        work = demand_of(8000, f"chain{i}")
        routes.append(nodes.placement.route(work, 0.0))
        nodes.book(str(i), work, routes[-1], 0.0)
    assert {route.decode.name for route in routes} == {"d0", "d1"}


def test_long_answers_are_sent_while_they_can_begin() -> None:
    """Each could fill the pool alone; their plans and promises count what their admissions take,
    ten pages of 45."""
    nodes = Nodes("p0")
    nodes.join("d0", load_of(free_pages=45), num_pages=45)
    for i in range(6):
        nodes.wait(str(i), demand_of(9 * 16, answer_pages=36), 0.0)
    sent: list[str] = []
    for look in range(7):
        new = names(nodes, now := 0.16 * look)
        for name in new:
            nodes.computed(name, now)
        sent += new
    assert len(sent) == 4 and len(nodes.queue) == 2
    nodes.ended(sent[0], 1.12)
    assert len(names(nodes, 1.12)) == 1


def test_a_plan_takes_what_an_admission_takes() -> None:
    """A long answer waits for its prefill node, whose prefix is worth it; another, with a prefix
    of its own, may count on all pages but those that the first needs to begin."""
    nodes = Nodes()
    for name, queued_tokens in (("p0", 1000), ("p1", 0)):
        slow = msgspec.structs.replace(
            load_of(queued_tokens), link_bytes_per_s=LAYOUT.page_bytes / 0.1
        )
        nodes.heard(name, slow, 0.0)
    nodes.join("d0", load_of(free_pages=400), num_pages=400)
    first, second = demand_of(4000, "a", answer_pages=150), demand_of(800, "b", answer_pages=300)
    nodes.index.stored(Node("p0", 1), first.hashes)
    nodes.wait("first", first, -100.0)
    nodes.wait("second", second, 0.0)
    assert names(nodes, 0.0) == ["second"]
    assert nodes.waits("first")


def test_a_large_request_is_not_passed_for_ever() -> None:
    """Small ones come all the time and take pages as they become free; those that come after the
    large one has waited long enough leave it room."""
    nodes = Nodes("p0")
    nodes.join("d0", load_of(free_pages=500))
    nodes.wait("large", demand_of(7900), 0.0)
    sent: list[str] = []
    now = 0.0
    while "large" not in sent:
        assert now < 2 * PATIENCE_GOALS * 8
        nodes.wait(f"small{now:.2f}", demand_of(100), now)
        new = names(nodes, now)
        sent += new
        used = sum(16 for name in new if name != "large")
        nodes.join("d0", load_of(free_pages=500 - used), now=now)
        for name in new:
            if name != "large":
                nodes.ended(name, now)
        now += 0.05


def test_where_any_node_does_any_work_prompts_do_not_wait_for_prefill_nodes() -> None:
    """What the decode node has of one of them makes it the shorter one; when it is sent, the other
    one waits."""
    nodes = Nodes("p0", "d0", policy="cost")
    work = demand_of(1000, "a")
    nodes.index.stored(Node("d0", 1), work.hashes)
    busy(nodes, "p0", 20.0)
    nodes.wait("cached", work, 0.0)
    nodes.wait("other", demand_of(1000, "b"), 0.0)
    ((first, route), (second, other_route)) = nodes.dispatch(0.0)
    assert (first, route.prefill) == ("cached", None)
    assert (second, other_route.prefill) == ("other", None)
    nodes.wait("third", demand_of(1000, "c"), 0.0)
    assert nodes.dispatch(0.0) == []


def test_a_retry_does_not_wait_for_the_node_that_it_avoids() -> None:
    nodes = Nodes("p0", "d0")
    busy(nodes, "p0", 30.0)
    nodes.wait("a", demand_of(1000, avoid=("p0",)), 0.0)
    ((_, route),) = nodes.dispatch(0.0)
    assert route.prefill is None


def test_who_waits_for_pages_keeps_no_prefill_node_from_others() -> None:
    """Two large old requests fit nowhere now: one waits at a node, the other one here."""
    nodes = Nodes("p0", "p1")
    nodes.join("d0", load_of(num_running=7, free_pages=500))
    nodes.join("d1", load_of(free_pages=100), num_pages=100)
    for i in range(2):
        nodes.wait(f"large{i}", demand_of(14_000), -1000.0)
    nodes.wait("small", demand_of(20), 0.0)
    assert names(nodes, 0.0) == ["large0", "small"]


def test_who_waited_too_long_for_pages_waits_at_the_node() -> None:
    """Requests of another coordinator take every page that becomes free."""
    nodes = Nodes("p0")
    nodes.join("d0", load_of(num_running=3, free_pages=300))
    nodes.wait("large", demand_of(9000), 0.0)
    assert names(nodes, 0.0) == []
    patience_s = PATIENCE_GOALS * 9.1
    assert names(nodes, patience_s - 10) == []
    assert names(nodes, patience_s + 1) == ["large"]


def test_one_at_a_time_waits_at_a_node_for_its_pages() -> None:
    nodes = Nodes("p0", "p1")
    nodes.heard("d0", load_of(num_running=3, free_pages=30), 0.0)
    for i in range(2):
        nodes.wait(str(i), demand_of(40 * 16), -1000.0)
    assert names(nodes, 0.0) == ["0"]
    assert names(nodes, 1.0) == [], "no heartbeat has shown it yet"
    nodes.heard("d0", load_of(num_running=4, free_pages=0), 2.0)
    assert names(nodes, 2.0) == ["1"], "the first one was admitted"


def test_a_full_node_gets_dearer_with_those_who_wait_for_it() -> None:
    """d0 has the prefix and no place; to move it takes 2 s. 150 requests do not all wait for d0."""
    nodes = Nodes()
    for name, num_running in (("p0", 0), ("p1", 0), ("d0", 9), ("d1", 0)):
        load = load_of(num_running=num_running)
        slow = msgspec.structs.replace(load, link_bytes_per_s=LAYOUT.page_bytes * 50)
        nodes.join(name, slow)
    prefix = demand_of(1600, "a")
    for name in ("p0", "p1", "d0"):
        nodes.index.stored(Node(name, 1), prefix.hashes)
    for i in range(150):
        nodes.wait(f"r{i}", prefix, 0.0)
    decodes = {route.decode.name for _, route in nodes.dispatch(0.0)}
    assert decodes == {"d1"}
