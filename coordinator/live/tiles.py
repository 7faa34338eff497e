"""The status strip: the few numbers that tell whether something is wrong, and how wrong. Pure.

`bad` is what clients feel or will soon; `warn` is what an operator should know of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from coordinator.live.nodes import NodeRow
from coordinator.live.waterfall import Waterfall
from protocol.counters import RequestCounters

Level = Literal["ok", "warn", "bad"]
Unit = Literal["per_s", "ms", "share", "count", "state"]

ERRORS_BAD = 0.01
"""The share of requests that failed above which clients feel it."""
REFUSED_BAD = 0.05
NEARLY = 0.8
"""A goal is nearly missed from this share of it on."""
LAG_WARN_S = 1.0
LAG_BAD_S = 5.0


class StatusTile(msgspec.Struct, frozen=True):
    """One number of the strip."""

    name: str
    value: float | str | None
    """None: there was nothing to measure."""
    unit: Unit
    level: Level = "ok"
    note: str = ""
    """What else to know, in a few words."""


@dataclass(frozen=True)
class Vitals:
    """What the strip is made of."""

    counters: RequestCounters
    """Of the requests that ended within the last `seconds`."""
    seconds: float
    num_resumed: int
    waterfall: Waterfall
    max_ttft_ms: float
    """The goal; 0: none."""
    gap_p99_ms: float | None
    """Of the gaps between tokens."""
    max_gap_ms: float
    """The goal of the nodes; 0: none."""
    nodes: Sequence[NodeRow]
    is_connected: bool
    """Redis answers."""
    lag_s: float
    pause_mode: str
    """Why nothing is generated; "" while it is."""
    stages: dict[str, int]
    """How many unfinished requests there are in each."""


def tiles_of(vitals: Vitals) -> list[StatusTile]:
    """Returns the tiles, in the order in which they stand if all is well."""
    tiles = [
        *_rates(vitals),
        *_latencies(vitals),
        *_failures(vitals),
        _redis(vitals.is_connected),
        _lag(vitals.lag_s),
        *(_nodes(role, vitals.nodes) for role in ("prefill", "decode")),
    ]
    if vitals.pause_mode:
        tiles.insert(0, StatusTile("generation", "paused", "state", "bad", vitals.pause_mode))
    return tiles


def _rates(vitals: Vitals) -> list[StatusTile]:
    per_s = round(vitals.counters.requests / vitals.seconds, 2)
    stages = vitals.stages
    num_running = sum(stages.values()) - stages["waiting"]
    note = f"{stages['waiting']} waiting" if stages["waiting"] else ""
    return [
        StatusTile("requests", per_s, "per_s"),
        StatusTile("in flight", num_running, "count", note=note),
    ]


def _latencies(vitals: Vitals) -> list[StatusTile]:
    goal, waterfall = vitals.max_ttft_ms, vitals.waterfall
    slow, gap = waterfall.first_token_p99_ms, vitals.gap_p99_ms
    return [
        StatusTile("TTFT p50", waterfall.first_token_p50_ms, "ms"),
        StatusTile("TTFT p99", slow, "ms", _against(slow, goal), _goal(goal)),
        StatusTile(
            "token gap p99", gap, "ms", _against(gap, vitals.max_gap_ms), _goal(vitals.max_gap_ms)
        ),
    ]


def _failures(vitals: Vitals) -> list[StatusTile]:
    counters = vitals.counters
    errors = counters.failed_requests / counters.requests if counters.requests else 0.0
    num_asked = counters.requests + counters.refused_requests
    refused = counters.refused_requests / num_asked if num_asked else 0.0
    return [
        StatusTile(
            "errors",
            round(errors, 4),
            "share",
            _share(errors, ERRORS_BAD),
            f"{counters.failed_requests} in the last minute" if errors else "",
        ),
        StatusTile(
            "refused (429)",
            counters.refused_requests,
            "count",
            _share(refused, REFUSED_BAD),
            f"{refused:.0%} of what was asked" if refused else "",
        ),
        StatusTile("resumed", vitals.num_resumed, "count", "warn" if vitals.num_resumed else "ok"),
    ]


def _redis(is_connected: bool) -> StatusTile:
    if is_connected:
        return StatusTile("Redis", "up", "state")
    return StatusTile("Redis", "gone", "state", "bad", "routing goes on from memory")


def _lag(lag_s: float) -> StatusTile:
    level: Level = "bad" if lag_s > LAG_BAD_S else "warn" if lag_s > LAG_WARN_S else "ok"
    return StatusTile("index lag", round(lag_s * 1e3, 1), "ms", level)


def _nodes(role: str, nodes: Sequence[NodeRow]) -> StatusTile:
    of_role = [node for node in nodes if node.role == role]
    num_ready = sum(node.state == "ready" for node in of_role)
    # A node of the other role can do this work, so none at all is bad only where nobody is ready.
    is_anybody_ready = any(node.state == "ready" for node in nodes)
    level: Level = "ok" if num_ready == len(of_role) else "warn"
    if not is_anybody_ready or (of_role and not num_ready):
        level = "bad"
    others = [f"{node.name} {node.state}" for node in of_role if node.state != "ready"]
    value = f"{num_ready} of {len(of_role)}" if of_role else "none"
    return StatusTile(f"{role} nodes", value, "state", level, ", ".join(others[:3]))


def _against(value: float | None, goal: float) -> Level:
    if not goal or value is None or value <= NEARLY * goal:
        return "ok"
    return "bad" if value > goal else "warn"


def _goal(goal_ms: float) -> str:
    return f"goal {goal_ms:g} ms" if goal_ms else ""


def _share(value: float, bad: float) -> Level:
    if not value:
        return "ok"
    return "bad" if value >= bad else "warn"
