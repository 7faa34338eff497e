"""`kvrelay top`: nodes, requests and rates of a cluster on one screen. Knows no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.tables.requests import request_table
from infra.tables.stats import ROLES, refused_lines

BAR_WIDTH = 20


@dataclass(frozen=True)
class ClusterSample:
    """What the coordinator told at one moment."""

    at: float
    """Seconds of any clock."""
    stats: dict[str, Any]
    """What /admin/cache/stats answered."""
    nodes: Sequence[dict[str, Any]]
    """What /admin/nodes answered."""
    requests: Sequence[dict[str, Any]]
    """The requests that run, the oldest ones last."""


def top_view(before: ClusterSample, now: ClusterSample) -> RenderableType:
    """Returns the screen. Rates are those between the two samples."""
    return Group(
        Text(_headline(before, now), style="bold"),
        *refused_lines(now.stats["cluster"]),
        _node_table(before, now),
        request_table(now.requests) if now.requests else Text("no request runs"),
    )


def _headline(before: ClusterSample, now: ClusterSample) -> str:
    cluster, recent = now.stats["cluster"], now.stats["cluster"]["last_5_minutes"]
    redis = "" if cluster["redis_connected"] else "; Redis is UNREACHABLE"

    def rate(name: str) -> float:
        return _rate(before.stats["cluster"], cluster, name, now.at - before.at)

    return (
        f"{cluster['running_requests']} requests run, {cluster['waiting_requests']} of these wait"
        f"; {rate('requests'):.1f} end per second, {rate('failed_requests'):.1f} fail; "
        f"{rate('prompt_tokens'):.0f} prompt and {rate('completion_tokens'):.0f} answered tokens/s"
        f"; hits {recent['token_hit_ratio']:.0%} in 5 minutes{redis}"
    )


def _node_table(before: ClusterSample, now: ClusterSample) -> Table:
    table = Table(box=box.SIMPLE, padding=0)
    table.add_column("node", no_wrap=True)
    table.add_column("role", no_wrap=True)
    headings = ("run", "wait", "queue s", "computed/s", "reused/s", "answered/s", "step ms")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("pages: held █ cached ▒", no_wrap=True)
    table.add_column("heard s", justify="right", no_wrap=True)
    table.add_column("release", no_wrap=True)
    earlier = {(node["name"], node["incarnation"]): node for node in before.nodes}
    for node in now.nodes:
        load = node["load"]
        known = earlier.get((node["name"], node["incarnation"]), node)["load"]["counters"]
        rates = (
            _rate(known, load["counters"], name, now.at - before.at)
            for name in ("computed_tokens", "reused_tokens", "generated_tokens")
        )
        table.add_row(
            node["name"],
            ROLES[node["role"]] + (" drains" if node["draining"] else ""),
            str(load["num_running"]),
            str(load["num_waiting"]),
            f"{node['backlog_s']:.2f}",
            *(f"{rate:.0f}" for rate in rates),
            f"{load['step_s'] * 1e3:.1f}",
            _bar(load["held_pages"], load["cached_pages"], node["num_pages"]),
            f"{node['last_heartbeat_s_ago']:.1f}",
            node.get("release", ""),
        )
    return table


def _rate(before: dict[str, Any], after: dict[str, Any], name: str, seconds: float) -> float:
    """Returns how much a counter grew per second; 0 if it began anew meanwhile."""
    return max(0.0, after[name] - before[name]) / seconds if seconds > 0 else 0.0


def _bar(held: int, cached: int, total: int) -> str:
    """Returns the shares of a node's pages as a bar. What is not nothing has a mark at least."""
    num_held = -(-held * BAR_WIDTH // total)
    num_cached = min(-(-cached * BAR_WIDTH // total), BAR_WIDTH - num_held)
    return "█" * num_held + "▒" * num_cached + "·" * (BAR_WIDTH - num_held - num_cached)
