"""How a node does, from what its companion sees of it."""

from __future__ import annotations

import pytest

from node.liveness.condition import health_of
from protocol.ids import Node
from protocol.messages import Condition

NODE = Node("p0", 7)


@pytest.mark.parametrize(
    ("came_round_at", "is_stopped", "condition"),
    [
        (None, False, "starting"),
        (None, True, "stopped"),
        (90.0, False, "alive"),
        (40.0, False, "alive"),
        (39.9, False, "stuck"),
        (90.0, True, "stopped"),
        (0.0, True, "stopped"),
    ],
)
def test_conditions(came_round_at: float | None, is_stopped: bool, condition: Condition) -> None:
    health = health_of(NODE, came_round_at, is_stopped, 60.0, 100.0)
    assert health.condition == condition
    assert (health.node, health.incarnation) == ("p0", 7)
    assert health.is_live == (condition in ("starting", "alive"))
    assert health.is_ready == (condition == "alive")
    assert health.turn_s == (0.0 if came_round_at is None else round(100.0 - came_round_at, 3))


def test_a_node_that_drains_is_not_ready_and_is_counted_on() -> None:
    health = health_of(NODE, 90.0, False, 60.0, 100.0, is_draining=True)
    assert health.is_live and health.keeps_lease and not health.is_ready
    stuck = health_of(NODE, 39.0, False, 60.0, 100.0, is_draining=True)
    assert not (stuck.is_live or stuck.keeps_lease or stuck.is_ready)


def test_a_loading_node_is_never_stuck() -> None:
    assert health_of(NODE, None, False, 0.001, 1e9).condition == "starting"
