"""Whom a node meets ahead of need: everybody of its cluster, once, and not too many."""

from __future__ import annotations

import msgspec

from node.shell.acquaintances import MAX_MET, Acquaintances
from protocol.ids import Node
from protocol.messages import NodeInfo
from tests.support.coordinator.nodes import info_of

OWN = info_of(Node("me", 5))


def others(count: int, incarnation: int = 1) -> list[NodeInfo]:
    return [info_of(Node(f"n{number:02}", incarnation)) for number in range(count)]


def test_each_incarnation_is_met_once() -> None:
    acquaintances = Acquaintances(OWN)
    assert acquaintances.strangers([*others(2), OWN]) == others(2)
    assert acquaintances.strangers([*others(3), OWN]) == others(3)[2:]
    assert acquaintances.strangers(others(3)) == []
    again = [*others(1, incarnation=2), *others(3)[1:]]
    assert acquaintances.strangers(again) == again[:1]


def test_an_older_life_of_this_node_and_other_models_are_left_out() -> None:
    (other,) = others(1)
    layout = msgspec.structs.replace(other.layout, page_size=2 * other.layout.page_size)
    foreign = [
        info_of(Node("me", 4)),
        msgspec.structs.replace(other, model_fingerprint="another"),
        msgspec.structs.replace(other, layout=layout),
    ]
    assert Acquaintances(OWN).strangers(foreign) == []


def test_there_is_a_bound_and_room_again_when_nodes_leave() -> None:
    acquaintances = Acquaintances(OWN)
    everybody = others(MAX_MET + 5)
    assert acquaintances.strangers(everybody) == everybody[:MAX_MET]
    assert acquaintances.strangers(everybody) == []
    assert acquaintances.strangers(everybody[3:]) == everybody[MAX_MET : MAX_MET + 3]
