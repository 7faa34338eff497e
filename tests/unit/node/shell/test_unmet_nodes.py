"""For whom a node that starts still waits: nobody to whom a link is open or has failed."""

from __future__ import annotations

from typing import Literal

from kvtransfer.transport import LinkStats
from node.shell.meetings import unmet
from protocol.ids import Node
from tests.support.coordinator.nodes import info_of

STRANGERS = [info_of(Node(name, 1)) for name in ("p0", "d0", "d1")]


def link(
    peer: str, is_open: bool, failures: int, direction: Literal["in", "out"] = "out"
) -> LinkStats:
    return LinkStats(peer, direction, "shm", is_open, 0, 0, 0.0, 0.0, failures)


def test_nobody_is_met_by_links_that_come_in_or_are_still_being_made() -> None:
    links = [link("p0", True, 0, "in"), link("d0", False, 0)]
    assert unmet(STRANGERS, links) == ["p0", "d0", "d1"]


def test_a_node_that_died_before_it_was_reached_is_not_waited_for() -> None:
    (dead_address,) = STRANGERS[1].data_addresses
    links = [link("p0", True, 0), link(dead_address, False, 1)]
    assert unmet(STRANGERS, links) == ["d1"]
    assert unmet(STRANGERS, [*links, link("d1", False, 1)]) == []
