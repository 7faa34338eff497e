"""Which nodes get no new requests, as they restart."""

from __future__ import annotations

from coordinator.routing.draining import draining_names
from protocol.redis.ownership import KEEPS_DRAINING
from tests.support.coordinator.nodes import Nodes


def test_a_node_that_restarts_drains_no_more_unless_it_is_kept() -> None:
    nodes = Nodes("p0", "d0", "d1")
    marks = {"d0": "1", "d1": KEEPS_DRAINING, "gone": "1"}
    assert draining_names(marks, nodes.registry.live()) == {"d0", "d1"}
    for name in nodes.names:
        nodes.join(name, incarnation=2)
    assert draining_names(marks, nodes.registry.live()) == {"d1"}
    assert draining_names({}, nodes.registry.live()) == set()
