"""The links of a node as its heartbeat tells them."""

from __future__ import annotations

from typing import Literal

from kvtransfer.transport import LinkStats
from node.load.counters import Counters
from node.load.links import link_loads
from protocol.ids import Node
from protocol.messages import MAX_LINKS, Heartbeat, LinkLoad, Load, decode, encode
from tests.support.coordinator.nodes import info_of


def stats(
    peer: str,
    is_open: bool = True,
    bytes_moved: int = 1000,
    direction: Literal["out", "in"] = "in",
) -> LinkStats:
    return LinkStats(
        peer=peer,
        direction=direction,
        transport="shm",
        is_open=is_open,
        bytes_moved=bytes_moved,
        pages_moved=10,
        busy_s=0.5,
        bytes_per_s=1e9,
        failures=1,
    )


def test_waits_join_the_link_they_waited_for() -> None:
    waits = [LinkLoad("p0", "in", exposed_s_total=2.0), LinkLoad("p9", "in", exposed_s_total=3.0)]
    assert link_loads([stats("p0"), stats("p0", direction="out")], waits) == (
        LinkLoad("p0", "in", "shm", True, 1000, 10, 0.5, 2.0, 1),
        LinkLoad("p0", "out", "shm", True, 1000, 10, 0.5, 0.0, 1),
        LinkLoad("p9", "in", exposed_s_total=3.0),
    )


def test_of_too_many_links_the_open_and_the_busy_are_told() -> None:
    closed = [stats(f"closed-{i}", False, 5000 + i) for i in range(MAX_LINKS)]
    told = link_loads([*closed, stats("idle", bytes_moved=0), stats("busy")], [])
    assert len(told) == MAX_LINKS
    assert [link.peer for link in told[:3]] == ["busy", "idle", f"closed-{MAX_LINKS - 1}"]


def test_of_too_many_peers_waited_for_the_stalest_is_forgotten() -> None:
    counters = Counters()
    for i in range(MAX_LINKS):
        counters.exposed(f"p{i}", 1.0)
    counters.exposed("p0", 1.0)
    counters.exposed("new", 1.0)
    assert "p1" not in counters.exposed_s
    assert counters.exposed_s["p0"] == 2.0
    assert len(counters.exposed_s) == MAX_LINKS


def test_links_travel_in_a_heartbeat() -> None:
    load = Load(
        role="decode", links=link_loads([stats(f"prefill-{i}") for i in range(MAX_LINKS)], [])
    )
    heartbeat = Heartbeat(info_of(Node("d0", 1)), load, 3.0)
    raw = encode(heartbeat)
    assert decode(raw) == heartbeat
    assert len(raw) < 4096
