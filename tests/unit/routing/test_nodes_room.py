"""What nodes have room for is what a look at all of them would say, whatever has happened."""

from __future__ import annotations

import random

import msgspec
import pytest

from coordinator.ownership.index import PrefixIndex
from coordinator.routing.nodes_room import NodesRoom
from coordinator.routing.placement import Placement
from coordinator.routing.policies import CheapestRoute
from coordinator.routing.registry import Registry
from coordinator.routing.router import Router
from protocol.ids import Node, Role
from protocol.messages import Heartbeat, Load
from tests.support.coordinator.nodes import info_of


@pytest.mark.parametrize("seed", range(5))
def test_room_follows_joins_leaves_roles_and_draining(seed: int) -> None:
    chance = random.Random(seed)
    registry = Registry()
    placement = Placement(registry, PrefixIndex(), Router(CheapestRoute(chance.random)))
    room = NodesRoom(placement)
    seen = set()
    for _ in range(100):
        node = Node(f"n{chance.randrange(4)}", 1)
        act = chance.random()
        if act < 0.6:
            role: Role = chance.choice(("prefill", "decode"))
            number = int(node.name[1:])
            info = msgspec.structs.replace(
                info_of(node), num_pages=100 + number, max_running_requests=1 + number
            )
            registry.heartbeat(Heartbeat(info, Load(role=role), 3.0), 0.0)
        elif act < 0.8:
            registry.remove(node)
        else:
            placement.draining = frozenset(chance.sample(["n0", "n1", "n2", "n3"], 2))
        infos = [live.info for live in placement.open()]
        answering = [live.info for live in placement.open("decode")] or infos
        tokens = max((i.num_pages * i.layout.page_size for i in infos), default=0)
        requests = sum(i.max_running_requests + i.max_queued_requests for i in answering)
        assert (room.max_tokens, room.num_requests) == (tokens, requests)
        seen.add((tokens, requests))
    assert len(seen) > 5
