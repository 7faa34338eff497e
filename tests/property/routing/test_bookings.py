"""Bookings balance to nothing, whatever ends in whatever order and whoever restarts."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coordinator.routing.route import Route
from protocol.ids import Node
from tests.support.coordinator.nodes import Nodes, booked, demand_of

LONG = 1600


def place(nodes: Nodes, request_id: str, chain: str = "", now: float = 0.0) -> Route:
    work = demand_of(LONG, chain)
    route = nodes.placement.route(work, now)
    nodes.book(request_id, work, route, now)
    return route


class PlacementMachine(RuleBasedStateMachine):
    """Bookings balance to nothing, whatever ends in whatever order and whoever restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = Nodes("p0", "p1", "d0", "d1")
        self.lives = dict.fromkeys(self.nodes.names, 1)
        self.routes: dict[str, Route] = {}
        self.count = 0
        self.now = 0.0

    @rule(chain=st.sampled_from(["", "a", "b"]))
    def place(self, chain: str) -> None:
        self.count += 1
        self.routes[str(self.count)] = place(self.nodes, str(self.count), chain, self.now)

    @rule(chance=st.randoms(use_true_random=False))
    def computed(self, chance: random.Random) -> None:
        if self.routes:
            self.nodes.computed(chance.choice(list(self.routes)), self.now)

    @rule(chance=st.randoms(use_true_random=False))
    def ended(self, chance: random.Random) -> None:
        if self.routes:
            name = chance.choice(list(self.routes))
            del self.routes[name]
            self.nodes.ended(name, self.now)

    @rule(name=st.sampled_from(["p0", "p1", "d0", "d1"]))
    def restart(self, name: str) -> None:
        self.lives[name] += 1
        live = self.nodes.join(name, now=self.now, incarnation=self.lives[name])
        self.nodes.placement.forget(Node(name, self.lives[name] - 1))
        self.nodes.placement.heard(live, self.now)

    @rule(seconds=st.floats(0.0, 5.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def booked_is_what_runs(self) -> None:
        lives = self.lives.items()
        for node in (Node(name, incarnation) for name, incarnation in lives):
            backlog = self.nodes.placement.queues.get(node.name)
            num_requests = backlog.num_requests if backlog is not None else 0
            answering = sum(route.decode == node for route in self.routes.values())
            computing = sum(route.prefill == node for route in self.routes.values())
            assert answering <= num_requests <= answering + computing

    def teardown(self) -> None:
        for name in list(self.routes):
            self.nodes.ended(name, self.now)
        assert booked(self.nodes.placement) == {}


TestPlacementMachine = PlacementMachine.TestCase
TestPlacementMachine.settings = settings(stateful_step_count=30)
