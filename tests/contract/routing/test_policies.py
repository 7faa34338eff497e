"""What every routing policy promises, and what each promises alone.

1,000 prompt tokens per second on every node. A prompt is 100 pages, with one for its answer.
"""

from __future__ import annotations

from collections import Counter

import pytest

from coordinator.routing.policies import POLICIES
from coordinator.routing.route import NoRoute, Route
from protocol.ids import Node
from tests.support.coordinator.nodes import Nodes, demand_of, load_of

WORK = demand_of(1600, "a")
NAMES = ["p0", "p1", "p2", "d0", "d1", "d2"]

every_policy = pytest.mark.parametrize("policy", POLICIES)


def route(nodes: Nodes, avoid: tuple[str, ...] = (), now: float = 0.0) -> Route:
    return nodes.placement.route(demand_of(1600, "a", avoid), now)


def run_through(nodes: Nodes, count: int) -> list[Route]:
    """Routes different prompts one after another: each ends before the next one comes."""
    routes = []
    for i in range(count):
        now, work = 10.0 * i, demand_of(1600, f"own{i}-")
        chosen = nodes.placement.route(work, now)
        nodes.book(str(i), work, chosen, now)
        nodes.ended(str(i), now + 5.0)
        routes.append(chosen)
    return routes


@every_policy
def test_with_one_node(policy: str) -> None:
    chosen = route(Nodes("d0", policy=policy))
    assert chosen.prefill is None and chosen.decode == Node("d0", 1)
    assert chosen.runner_up == "no other node"


@every_policy
def test_without_a_node(policy: str) -> None:
    with pytest.raises(NoRoute):
        route(Nodes(policy=policy))


@every_policy
def test_without_a_decode_node_a_prefill_node_answers(policy: str) -> None:
    chosen = route(Nodes("p0", policy=policy))
    assert chosen.prefill is None and chosen.decode == Node("p0", 1)


@every_policy
def test_without_a_prefill_node_decode_computes(policy: str) -> None:
    chosen = route(Nodes("d0", "d1", policy=policy))
    assert chosen.prefill is None and chosen.cost.transfer_s == 0.0


@every_policy
def test_the_same_seed_chooses_the_same(policy: str) -> None:
    first, second = (run_through(Nodes(*NAMES, policy=policy, seed=7), 20) for _ in range(2))
    assert first == second


@every_policy
def test_all_idle_nodes_are_used_in_the_long_run(policy: str) -> None:
    routes = run_through(Nodes(*NAMES, policy=policy), 60)
    # Where any node does any work, idle nodes that answer compute too: nothing has to be sent.
    for name in ("d0", "d1", "d2") if policy == "cost" else ("p0", "p1", "p2"):
        assert 10 <= sum(r.computes == Node(name, 1) for r in routes) <= 30
    for name in ("d0", "d1", "d2"):
        assert 8 <= sum(r.decode == Node(name, 1) for r in routes) <= 32


@every_policy
def test_all_nodes_that_do_both_are_used_in_the_long_run(policy: str) -> None:
    routes = run_through(Nodes("d0", "d1", "d2", policy=policy), 60)
    for name in ("d0", "d1", "d2"):
        assert 10 <= sum(r.decode == Node(name, 1) for r in routes) <= 30


@every_policy
def test_a_burst_is_spread(policy: str) -> None:
    """Each prompt is booked before the next one is routed, and none has been computed."""
    nodes = Nodes("p0", "p1", "p2", "d0", policy=policy)
    chosen = []
    for i in range(9):
        work = demand_of(1600, f"own{i}-")
        one = nodes.placement.route(work, 0.0)
        nodes.book(str(i), work, one, 0.0)
        chosen.append(one.computes.name)
    counts = Counter(chosen)
    if policy == "cost":
        assert counts.keys() == {"p0", "p1", "p2", "d0"} and max(counts.values()) == 3
    else:
        assert counts == {"p0": 3, "p1": 3, "p2": 3}


def test_cost_prefers_the_prefix_until_its_queue_costs_more() -> None:
    nodes = Nodes("p0", "p1", "d0")
    nodes.index.stored(Node("p0", 1), WORK.hashes[:50])
    assert route(nodes).prefill == Node("p0", 1)
    nodes.heard("p0", load_of(queued_tokens=9000), 0.0)
    chosen = route(nodes)
    assert chosen.prefill == Node("p1", 1) and chosen.fetch_from == Node("p0", 1)


def test_round_robin_takes_turns_whatever_nodes_have_or_do() -> None:
    nodes = Nodes(*NAMES, policy="round-robin")
    nodes.index.stored(Node("p1", 1), WORK.hashes)
    nodes.heard("p2", load_of(queued_tokens=9000), 0.0)
    routes = [route(nodes) for _ in range(6)]
    assert [r.computes.name for r in routes] == ["p0", "p1", "p2"] * 2
    assert [r.decode.name for r in routes] == ["d0", "d1", "d2"] * 2


def test_least_loaded_takes_the_shortest_queue_and_the_fewest_requests() -> None:
    nodes = Nodes(policy="least-loaded")
    for name, queued_tokens, num_running in (
        ("p0", 400, 0),
        ("p1", 300, 5),
        ("p2", 500, 0),
        ("d0", 0, 3),
        ("d1", 0, 2),
    ):
        nodes.heard(name, load_of(queued_tokens, num_running), 0.0)
    nodes.index.stored(Node("p0", 1), WORK.hashes)
    nodes.index.stored(Node("d0", 1), WORK.hashes)
    chosen = route(nodes)
    assert (chosen.computes.name, chosen.decode.name) == ("p1", "d1")


def test_longest_prefix_takes_the_longest_prefix_whatever_its_queue() -> None:
    nodes = Nodes("p0", "p1", "p2", "d0", "d1", policy="longest-prefix")
    for name, owned in (("p0", 3), ("p1", 50), ("p2", 50), ("d1", 2)):
        nodes.index.stored(Node(name, 1), WORK.hashes[:owned])
    nodes.heard("p1", load_of(queued_tokens=90_000), 0.0)
    nodes.heard("p2", load_of(queued_tokens=80_000), 0.0)
    chosen = route(nodes)
    assert (chosen.computes.name, chosen.decode.name) == ("p2", "d1")
    assert chosen.fetch_from is None
