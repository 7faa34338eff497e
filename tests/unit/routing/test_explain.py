"""An explanation changes nothing: what it tells is what the next request then does."""

from __future__ import annotations

import random
from functools import partial

import pytest

from coordinator.ownership.index import PrefixIndex
from coordinator.routing.demand import Demand
from coordinator.routing.placement import Placement
from coordinator.routing.policies import POLICIES
from coordinator.routing.router import Router
from tests.support.coordinator.nodes import load_of, registry_of

NODES = [f"{role}{i}" for role in "pd" for i in range(5)]


@pytest.mark.parametrize("policy", POLICIES)
def test_explaining_takes_no_turn_and_no_chance(policy: str) -> None:
    chance = partial(random.Random.random, random.Random(3))
    registry = registry_of({name: load_of() for name in NODES})
    placement = Placement(registry, PrefixIndex(), Router(POLICIES[policy](chance)))
    demand = Demand(num_tokens=40, num_pages=3, admission_pages=3, hashes=[])
    chosen = set()
    for _ in range(20):  # equal nodes: every policy has to break the tie
        explained = [placement.explain(demand, 0.0)[1] for _ in range(3)]
        route = placement.route(demand, 0.0)
        assert explained == [route] * 3
        chosen.add((route.prefill, route.decode))
    assert len(chosen) > 2
