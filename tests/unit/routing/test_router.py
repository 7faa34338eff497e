"""Where a request goes. All nodes compute 1,000 prompt tokens per second here."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.routing.cost import EVICTED_REUSE, OWN_WORK_WEIGHT
from coordinator.routing.route import NoRoute
from coordinator.routing.router import Candidates
from protocol.ids import Node
from protocol.messages import Load
from tests.support.coordinator.nodes import Nodes, heartbeat, load_of, registry_of
from tests.support.coordinator.nodes import demand_of as nodes_demand_of
from tests.support.coordinator.routes import (
    IDLE,
    PAGE_BYTES,
    SLOW_LINK,
    cluster_of,
    demand_of,
    fetch,
    names,
    owners_of,
    route,
    router_of,
    with_link,
)

EVICTED = EVICTED_REUSE * OWN_WORK_WEIGHT

# The node that computes the prompt


def test_the_owner_of_the_prefix_computes_the_rest() -> None:
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE})
    chosen = route(registry, owned={"p1": 50})
    assert names(chosen) == ("p1", "d0")
    assert chosen.computes == Node("p1", 1)
    assert (chosen.cached_pages, chosen.fetch_pages) == (50, 0)
    assert chosen.cost.compute_s == pytest.approx(0.01 + 0.8)
    assert chosen.busy_s == chosen.cost.compute_s
    assert "prefill on p1: 50 of 100 pages cached there, queue 0 ms" in chosen.reason


def test_the_longest_match_loses_when_its_queue_is_too_long() -> None:
    """A match of 20 pages saves 0.32 s, counted three times; 2 s of queue are more."""
    registry = registry_of(dict.fromkeys(("p0", "p1", "d0"), with_link(SLOW_LINK)))
    assert names(route(registry, owned={"p0": 20}, queues_s={"p0": 2.0})) == ("p1", "d0")


def test_a_short_queue_does_not_outweigh_a_long_match() -> None:
    registry = registry_of(dict.fromkeys(("p0", "p1", "d0"), with_link(SLOW_LINK)))
    assert names(route(registry, owned={"p0": 90}, queues_s={"p0": 0.5})) == ("p0", "d0")


def test_work_that_is_planned_counts_as_a_queue() -> None:
    registry = registry_of(dict.fromkeys(("p0", "p1", "d0"), with_link(SLOW_LINK)))
    chosen = route(registry, owned={"p0": 20}, planned_s={"p0": 1.0}, queues_s={"p0": 1.0})
    assert names(chosen) == ("p1", "d0")
    chosen = route(registry, owned={"p0": 90}, planned_s={"p0": 0.25}, queues_s={"p0": 0.5})
    assert names(chosen) == ("p0", "d0") and chosen.queue_s == 0.75


def test_pages_that_a_node_will_own_count_for_computing_there() -> None:
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE})
    chosen = route(registry, owned={"p0": 10}, expected={"p1": 60})
    assert names(chosen) == ("p1", "d0") and chosen.cached_pages == 60


def test_a_prompt_never_hits_the_page_of_its_last_token() -> None:
    registry = registry_of({"p0": IDLE, "d0": IDLE})
    chosen = route(registry, owned={"p0": 100}, num_tokens=1600)
    assert chosen.cached_pages == 99
    assert chosen.cost.compute_s == pytest.approx(0.01 + 0.016)
    chosen = route(registry, owned={"d0": 100}, num_tokens=1600)
    assert chosen.fetch_pages == 99
    assert route(registry, owned={"p0": 100}, num_tokens=1601).cached_pages == 100


def test_ties_go_to_the_node_that_was_given_least_work() -> None:
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE})
    cluster = cluster_of(registry, totals_s={"p0": 3.0, "p1": 2.0})
    assert names(router_of().route(demand_of(), owners_of(), cluster)) == ("p1", "d0")


# Equal and nearly equal nodes


def measured(load: Load = IDLE, **rates: float) -> Load:
    return msgspec.structs.replace(load, **rates)  # type: ignore[arg-type]


def test_among_equals_the_owner_wins_though_it_was_given_more_work() -> None:
    """Both would fetch from the decode node, which has the answer too: p0 has the prompt."""
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE})
    cluster = cluster_of(registry, totals_s={"p0": 3.0, "p1": 1.0})
    owners = owners_of({"p0": 60, "d0": 62})
    for _ in range(5):
        assert names(router_of().route(demand_of(), owners, cluster)) == ("p0", "d0")


@pytest.mark.parametrize("slower", [0.96, 1.0, 1.04])
def test_an_idle_owner_is_not_passed_over_because_another_measured_a_little_more(
    slower: float,
) -> None:
    owner = measured(prefill_tokens_per_s=1000 * slower)
    registry = registry_of({"p0": owner, "p1": IDLE, "d0": IDLE})
    chosen = route(registry, owned={"p0": 60})
    assert names(chosen) == ("p0", "d0") and fetch(chosen) is None


def test_a_node_that_measured_nothing_is_presumed_to_be_like_the_others() -> None:
    """Not twice as fast by a default, whatever the device is."""
    fresh = measured(prefill_tokens_per_s=0.0, step_s=0.0, link_bytes_per_s=0.0)
    registry = registry_of({"p0": IDLE, "p1": fresh, "d0": IDLE})
    candidates = router_of().candidates(demand_of(), owners_of(), cluster_of(registry))
    first, second = candidates.prefill
    assert first.cost.compute_s == second.cost.compute_s == pytest.approx(0.01 + 1.6)


@pytest.mark.parametrize("num_running", [0, 1, 8, 20])
def test_a_decode_node_with_all_but_the_last_page_computes_the_rest_itself(
    num_running: int,
) -> None:
    """As on a GPU: 40,000 prompt tokens per second, 10 ms for a step of any kind."""
    load = measured(prefill_tokens_per_s=40_000.0, step_s=0.01, link_bytes_per_s=2e10)
    registry = registry_of({"p0": load, "p1": load})
    busy = measured(load, num_running=num_running)
    registry.heartbeat(heartbeat("decode", Node("d0", 1), busy, max_running_requests=64), 0.0)
    for owned in ({"d0": 99}, {"d0": 99, "p0": 99}):
        assert names(route(registry, owned=owned, policy="cost")) == (None, "d0")
        assert names(route(registry, owned=owned))[0] in ("p0", "p1")


# Fetching


@pytest.mark.parametrize("owner", ["p0", "d0", "d1"])
def test_a_prefix_is_fetched_from_an_owner_of_any_role(owner: str) -> None:
    """80 pages are 1.28 s of computing and 0.7 ms of sending; their owner is busy."""
    registry = registry_of(dict.fromkeys(("p0", "p1", "d0", "d1"), IDLE))
    chosen = route(registry, owned={owner: 80}, queues_s={"p0": 5.0})
    assert chosen.prefill == Node("p1", 1)
    assert fetch(chosen) == (owner, 80)
    assert chosen.fetch_address == f"tcp://{owner}:1"
    assert chosen.cached_pages == 80
    assert chosen.cost.fetch_s == pytest.approx(0.002 + 80 * PAGE_BYTES / 1e9)
    assert chosen.cost.compute_s == pytest.approx(0.01 + 0.32)
    assert chosen.busy_s == pytest.approx(chosen.cost.fetch_s + chosen.cost.compute_s)
    assert f"0 of 100 pages cached there, 80 fetched from {owner} in 3 ms" in chosen.reason


def test_nothing_is_fetched_over_a_slow_link() -> None:
    registry = registry_of(dict.fromkeys(("p0", "p1", "d0"), with_link(SLOW_LINK)))
    chosen = route(registry, owned={"p0": 80}, queues_s={"p0": 10.0})
    assert names(chosen) == ("p1", "d0") and fetch(chosen) is None


def test_the_link_of_the_owner_decides() -> None:
    loads = {"p0": with_link(SLOW_LINK), "p1": IDLE, "d0": IDLE}
    assert fetch(route(registry_of(loads), owned={"p0": 80}, queues_s={"p0": 10.0})) is None
    loads = {"p0": IDLE, "p1": with_link(SLOW_LINK), "d0": IDLE}
    chosen = route(registry_of(loads), owned={"p0": 80}, queues_s={"p0": 10.0})
    assert fetch(chosen) == ("p0", 80)


def test_only_what_is_missing_is_fetched() -> None:
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE})
    chosen = route(registry, owned={"p0": 80, "p1": 30}, queues_s={"p0": 5.0})
    assert fetch(chosen) == ("p0", 80) and names(chosen) == ("p1", "d0")
    assert chosen.cost.fetch_s == pytest.approx(0.002 + 50 * PAGE_BYTES / 1e9)
    assert "30 of 100 pages cached there, 50 fetched from p0" in chosen.reason


def test_nothing_is_fetched_from_a_node_that_failed_before() -> None:
    """It may be dead, and its pages known until its lease ends."""
    registry = registry_of({"p0": IDLE, "p1": IDLE, "p2": IDLE, "d0": IDLE})
    owned = {"p0": 80, "p1": 60}
    assert fetch(route(registry, owned, queues_s={"p0": 5.0, "p1": 5.0})) == ("p0", 80)
    chosen = route(registry, owned, queues_s={"p0": 5.0, "p1": 5.0}, avoid=("p0",))
    assert fetch(chosen) == ("p1", 60) and names(chosen) == ("p2", "d0")


def test_a_node_never_fetches_from_itself() -> None:
    registry = registry_of({"p0": IDLE, "d0": IDLE})
    assert fetch(route(registry, owned={"p0": 80}, expected={"p0": 90})) is None
    registry = registry_of({"d0": IDLE})
    assert fetch(route(registry, owned={"d0": 80})) is None


def test_nothing_is_fetched_that_is_only_expected() -> None:
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE})
    chosen = route(registry, expected={"p0": 80}, queues_s={"p0": 10.0})
    assert names(chosen) == ("p1", "d0") and fetch(chosen) is None
    chosen = route(registry, owned={"p0": 10}, expected={"p0": 80}, queues_s={"p0": 10.0})
    assert fetch(chosen) == ("p0", 10)


def test_a_decode_node_that_prefills_for_itself_fetches_too() -> None:
    """Without a prefill node; and with one that is busy."""
    chosen = route(registry_of({"d0": IDLE, "d1": IDLE}), owned={"d1": 80}, queues_s={"d1": 9.0})
    assert names(chosen) == (None, "d0") and fetch(chosen) == ("d1", 80)
    registry = registry_of({"p0": IDLE, "d0": IDLE})
    chosen = route(registry, owned={"p0": 99}, queues_s={"p0": 9.0}, policy="cost")
    assert names(chosen) == (None, "d0") and fetch(chosen) == ("p0", 99)
    assert chosen.cost.transfer_s == 0.0


def test_a_fetch_that_the_queue_covers_occupies_nobody() -> None:
    registry = registry_of({"p0": IDLE, "d0": IDLE})
    chosen = route(registry, owned={"d0": 80}, queues_s={"p0": 1.0})
    assert fetch(chosen) == ("d0", 80)
    assert chosen.busy_s == pytest.approx(chosen.cost.compute_s)


def test_the_least_busy_of_equal_owners_sends() -> None:
    loads = {"p0": IDLE, "d0": load_of(num_running=5), "d1": load_of(num_running=2), "d2": IDLE}
    chosen = route(registry_of(loads), owned={"d0": 50, "d1": 50, "d2": 40})
    assert fetch(chosen) == ("d1", 50)


def test_pages_of_an_earlier_life_are_nobodys() -> None:
    registry = registry_of({"p0": IDLE, "d0": IDLE})
    registry.heartbeat(heartbeat("decode", Node("d0", 2)), 0.0)
    chosen = route(registry, owned={"d0": 80})
    assert names(chosen) == ("p0", "d0") and fetch(chosen) is None


# What comes to a full node pushes out others


def test_replication_is_charged_on_a_full_node_only() -> None:
    registry = registry_of(
        {"p0": load_of(free_pages=99), "p1": load_of(free_pages=100), "d0": IDLE}
    )
    candidates = router_of().candidates(
        demand_of(), owners_of(), cluster_of(registry, hit_share=0.5)
    )
    assert [c.cost.evict_s for c in candidates.prefill] == [pytest.approx(EVICTED * 0.5 * 1.6), 0.0]
    chosen = router_of().choose(demand_of(), candidates)
    assert chosen.prefill == Node("p1", 1)


def test_what_is_fetched_pushes_out_as_much_as_what_is_computed() -> None:
    registry = registry_of({"p0": load_of(free_pages=0), "d0": IDLE})
    owners = owners_of({"p0": 30, "d0": 80})
    cluster = cluster_of(registry, hit_share=0.5)
    candidates = router_of().candidates(demand_of(), owners, cluster)
    (candidate,) = candidates.prefill
    assert candidate.fetch_pages == 80
    assert candidate.cost.evict_s == pytest.approx(EVICTED * 0.5 * 70 * 0.016)


# The node that answers


def test_decode_node_that_has_the_pages_needs_fewer_moved() -> None:
    registry = registry_of({"p0": IDLE, "d0": IDLE, "d1": with_link(1e6)})
    chosen = route(registry, owned={"d1": 60})
    assert names(chosen) == ("p0", "d1")


def test_a_full_decode_node_is_avoided() -> None:
    registry = registry_of({"p0": IDLE, "d0": load_of(num_running=8), "d1": load_of(num_running=3)})
    assert names(route(registry)) == ("p0", "d1")


def test_a_decode_node_without_free_pages_is_avoided() -> None:
    registry = registry_of({"p0": IDLE, "d0": load_of(free_pages=107), "d1": IDLE})
    assert {names(route(registry)) for _ in range(5)} == {("p0", "d1")}


def test_pages_are_not_waited_for_that_only_a_whole_answer_could_take() -> None:
    """d0 lacks room for the 8 pages of the answer; for the one that begins it has it, or not. To
    move the prefix takes 0.25 s, to wait for an answer there 0.64 s."""
    link = PAGE_BYTES / 0.005
    for free_pages, answers in ((51, "d0"), (50, "d1")):
        full = with_link(link, load_of(free_pages=free_pages))
        registry = registry_of({"p0": with_link(link), "d0": full, "d1": with_link(link)})
        chosen = route(registry, owned={"d0": 50})
        assert names(chosen)[1] == answers


def test_without_prefill_nodes_decode_nodes_compute() -> None:
    registry = registry_of(dict.fromkeys(("d0", "d1"), with_link(SLOW_LINK)))
    chosen = route(registry, owned={"d1": 10})
    assert names(chosen) == (None, "d1")
    assert "d1 prefills for itself" in chosen.reason


# Nodes that are no candidates


def test_nodes_that_failed_are_avoided_while_there_are_others() -> None:
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE, "d1": IDLE})
    assert names(route(registry, owned={"p0": 90}, avoid=("p0", "d0"))) == ("p1", "d1")
    registry = registry_of({"p0": IDLE, "d0": IDLE})
    assert names(route(registry, owned={"p0": 90}, avoid=("p0", "d0"))) == (None, "d0")


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


def test_no_node() -> None:
    with pytest.raises(NoRoute, match="no node with room"):
        route(registry_of({}))


def test_a_draining_node_gets_nothing_and_can_be_fetched_from() -> None:
    nodes = Nodes("p0", "p1", "d0", "d1")
    work = nodes_demand_of(1600, "a")
    nodes.index.stored(Node("p0", 1), work.hashes[:80])
    nodes.index.stored(Node("d0", 1), work.hashes[:10])
    nodes.placement.draining = frozenset({"p0", "d0"})
    chosen = nodes.placement.route(work, 0.0)
    assert names(chosen) == ("p1", "d1") and fetch(chosen) == ("p0", 80)
    nodes.placement.draining = frozenset({"p0", "p1", "d0", "d1"})
    with pytest.raises(NoRoute):
        nodes.placement.route(work, 0.0)


# What is not known


def test_unmeasured_rates_are_no_error_and_leave_the_least_loaded() -> None:
    new = Load(role="decode", free_pages=1000)
    chosen = route(registry_of({"d0": new}), owned={"d0": 3})
    assert names(chosen) == (None, "d0") and 0 < chosen.cost.first_token_s < 10
    registry = registry_of(dict.fromkeys(("p0", "p1", "d0", "d1"), new))
    assert names(route(registry, queues_s={"p0": 0.1, "d1": 0.0})) == ("p1", "d0")


def test_of_nodes_that_have_no_heartbeat_left_the_one_with_fewer_of_our_requests() -> None:
    """Heartbeats said that p0 is idle and p1 is not; that is long ago."""
    nodes = Nodes("p0", "p1", "d0")
    nodes.heard("p1", load_of(queued_tokens=5000), 0.0)
    assert names(nodes.placement.route(nodes_demand_of(160), 0.0)) == ("p0", "d0")
    later = 1000.0
    chosen = []
    for i in range(4):
        one = nodes.placement.route(nodes_demand_of(1600), later)
        nodes.book(str(i), nodes_demand_of(1600), one, later)
        chosen.append(one.computes.name)
    assert sorted(chosen) == ["p0", "p0", "p1", "p1"]


# Reasons


def test_the_runner_up_and_how_much_it_would_have_cost() -> None:
    registry = registry_of(dict.fromkeys(("p0", "p1", "d0"), with_link(SLOW_LINK)))
    chosen = route(registry, owned={"p0": 50, "p1": 40})
    assert chosen.prefill == Node("p0", 1)
    assert chosen.runner_up == "p1: 40 pages cached, 480 ms more", "10 pages, counted three times"


def test_the_runner_up_is_another_node() -> None:
    registry = registry_of({"p0": IDLE, "d0": IDLE})
    assert route(registry, owned={"d0": 50}).runner_up == "no other node"
    assert route(registry, owned={"d0": 99}, policy="cost").runner_up.startswith("p0: ")


def test_a_policy_that_does_not_weigh_costs_may_pass_over_a_cheaper_node() -> None:
    registry = registry_of({"p0": IDLE, "p1": IDLE, "d0": IDLE})
    owners, cluster = owners_of({"p1": 50}), cluster_of(registry)
    chosen = router_of("round-robin").route(demand_of(), owners, cluster)
    assert chosen.prefill == Node("p0", 1)
    assert chosen.runner_up == "p1: 50 pages cached, 2400 ms less"


def test_the_choice_is_the_least_of_the_candidates() -> None:
    registry = registry_of({"p0": load_of(free_pages=3), "p1": IDLE, "d0": IDLE, "d1": IDLE})
    owners = owners_of({"p0": 70, "d1": 98}, expected={"p1": 20})
    router = router_of("cost")
    cluster = cluster_of(registry, {"p0": 0.2, "d1": 0.1}, hit_share=0.4)
    candidates = router.candidates(demand_of(), owners, cluster)
    chosen = router.choose(demand_of(), candidates)
    assert chosen.cost.score == pytest.approx(least(candidates), abs=0.002)


def least(candidates: Candidates) -> float:
    apart = [p.score + d.score for p in candidates.prefill for d in candidates.decode]
    return min(apart + [both.score for both in candidates.both])
