"""The status strip: what is bad, what an operator should know of, and what is well."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.live.nodes import NodeRow, NodeState
from coordinator.live.tiles import StatusTile, Vitals, tiles_of
from coordinator.live.waterfall import Waterfall
from protocol.counters import RequestCounters
from protocol.ids import Role


def node(name: str, role: Role, state: NodeState = "ready") -> NodeRow:
    return NodeRow(name=name, role=role, state=state)


NODES = [node("p0", "prefill"), node("d0", "decode"), node("d1", "decode")]
WELL = Vitals(
    counters=RequestCounters(requests=600),
    seconds=60.0,
    num_resumed=0,
    waterfall=Waterfall(600, 40.0, 700.0, []),
    max_ttft_ms=1000.0,
    gap_p99_ms=12.0,
    max_gap_ms=50.0,
    nodes=NODES,
    is_connected=True,
    lag_s=0.002,
    pause_mode="",
    stages={"waiting": 2, "computing": 1, "answering": 5},
)


def tile(vitals: Vitals, name: str) -> StatusTile:
    (found,) = [one for one in tiles_of(vitals) if one.name == name]
    return found


def test_a_cluster_that_is_well_has_nothing_to_say() -> None:
    tiles = tiles_of(WELL)
    assert {one.level for one in tiles} == {"ok"} and len(tiles) == 12
    assert tile(WELL, "requests").value == 10.0
    assert tile(WELL, "in flight").value == 6 and "2 waiting" in tile(WELL, "in flight").note
    assert tile(WELL, "decode nodes").value == "2 of 2"


@pytest.mark.parametrize(
    ("name", "changed", "level"),
    [
        ("TTFT p99", {"max_ttft_ms": 699.0}, "bad"),
        ("TTFT p99", {"max_ttft_ms": 800.0}, "warn"),
        ("TTFT p99", {"max_ttft_ms": 0.0}, "ok"),
        ("TTFT p99", {"waterfall": Waterfall(0, None, None, [])}, "ok"),
        ("token gap p99", {"gap_p99_ms": 51.0}, "bad"),
        ("errors", {"counters": RequestCounters(requests=600, failed_requests=6)}, "bad"),
        ("errors", {"counters": RequestCounters(requests=600, failed_requests=1)}, "warn"),
        ("errors", {"counters": RequestCounters()}, "ok"),
        ("refused (429)", {"counters": RequestCounters(requests=90, refused_requests=10)}, "bad"),
        ("refused (429)", {"counters": RequestCounters(requests=99, refused_requests=1)}, "warn"),
        ("resumed", {"num_resumed": 1}, "warn"),
        ("Redis", {"is_connected": False}, "bad"),
        ("index lag", {"lag_s": 1.5}, "warn"),
        ("index lag", {"lag_s": 6.0}, "bad"),
        ("generation", {"pause_mode": "retract"}, "bad"),
        ("decode nodes", {"nodes": [*NODES[:2], node("d1", "decode", "gone")]}, "warn"),
        ("decode nodes", {"nodes": [*NODES[:2], node("d1", "decode", "draining")]}, "warn"),
        ("prefill nodes", {"nodes": [node("p0", "prefill", "silent"), *NODES[1:]]}, "bad"),
        ("prefill nodes", {"nodes": NODES[1:]}, "ok"),  # decode nodes do that work too
        ("prefill nodes", {"nodes": []}, "bad"),
    ],
)
def test_what_is_wrong_has_its_level(name: str, changed: dict[str, object], level: str) -> None:
    vitals = replace(WELL, **changed)  # type: ignore[arg-type]
    assert tile(vitals, name).level == level
    others = {one.level for one in tiles_of(vitals) if one.name != name}
    assert others <= {"ok"} or "nodes" in changed


def test_a_node_that_is_not_ready_is_named() -> None:
    vitals = replace(WELL, nodes=[*NODES[:2], node("d1", "decode", "gone")])
    shown = tile(vitals, "decode nodes")
    assert shown.value == "1 of 2" and shown.note == "d1 gone"
