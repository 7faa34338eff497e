"""Prints tables for people: the caches of a running cluster, a routing decision, an audit."""

from __future__ import annotations

import time
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kvrelay.client import Client
from kvrelay.errors import ClientError

REFRESH_S = 1.0
PIPE_WIDTH = 120
"""The width of tables, in characters, where the output is no terminal."""
SHOWN_COUNTERS = (
    *("computed_tokens", "reused_tokens", "fetched_tokens"),
    *("pages_sent", "pages_received", "pages_evicted"),
)
TERMS = ("queue", "fetch", "compute", "transfer", "wait", "evict", "delay", "first_token", "score")
ROLES = {"prefill": "P", "decode": "D"}
TASKS = {
    "prefill": "nodes that would compute the prompt",
    "decode": "nodes that would answer",
    "both": "nodes that would do both",
}
DIFFERENCES = ("missing_in_redis", "extra_in_redis", "missing_in_mirror", "extra_in_mirror")


def new_console() -> Console:
    """Returns a console as wide as the terminal, or PIPE_WIDTH where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def show_stats(stats: dict[str, Any], console: Console) -> None:
    """Prints what /admin/cache/stats answered."""
    console.print(stats_view(stats))


def watch_stats(client: Client, console: Console) -> None:
    """Shows the statistics anew every second until Ctrl-C.

    While the coordinator is away, as when it restarts, the last ones stay with the error below.
    Raises ClientError if it never answered.
    """
    view = stats_view(client.cache_stats())
    with Live(view, console=console, auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH_S)
            problem = ""
            try:
                view = stats_view(client.cache_stats())
            except ClientError as error:
                problem = str(error)
            live.update(Group(view, Text(problem, style="red")) if problem else view, refresh=True)


def stats_view(stats: dict[str, Any]) -> RenderableType:
    """Returns the answer of /admin/cache/stats as a table of nodes with lines on the cluster."""
    cluster = stats["cluster"]
    recent = cluster["last_5_minutes"]
    lines = (
        f"{cluster['requests']} requests ended: {cluster['failed_requests']} failed, "
        f"{cluster['disconnected_requests']} lost their client, "
        f"{cluster['aborted_requests']} were aborted; {cluster['refused_requests']} more were "
        f"refused, {cluster['stalled_clients']} clients did not read",
        f"{cluster['running_requests']} run, {cluster['waiting_requests']} of these wait for a "
        "node",
        f"cache hits: {cluster['token_hit_ratio']:.1%} of prompt tokens, "
        f"{cluster['request_hit_ratio']:.1%} of requests; in the last 5 minutes "
        f"{recent['token_hit_ratio']:.1%} and {recent['request_hit_ratio']:.1%}",
        f"owned pages: {cluster['unique_owned_pages']} unique, "
        f"{cluster['duplicate_owned_pages']} duplicates; index "
        f"{cluster['index_bytes'] / 1e6:.1f} MB, {cluster['index_lag_s'] * 1e3:.0f} ms behind; "
        f"Redis {'connected' if cluster['redis_connected'] else 'unreachable'}",
    )
    return Group(
        _node_table(stats["nodes"]),
        *(Text(line) for line in lines),
        *refused_lines(cluster),
    )


def refused_lines(cluster: dict[str, Any]) -> list[Text]:
    """Returns a line for each node that is kept out of the cluster, with the reason. Releases up to
    0.1.0 tell of none."""
    return [
        Text(f"refused: {one['name']}: {one['why']}", style="red")
        for one in cluster.get("refused_nodes", ())
    ]


def show_explanation(explanation: dict[str, Any], console: Console) -> None:
    """Prints what /admin/route/explain answered: the candidates with their costs, the reason."""
    tokens, pages = explanation["prompt_tokens"], explanation["prompt_pages"]
    console.print(f"{tokens} tokens, {pages} pages; policy {explanation['policy']}; times in ms")
    for task, title in TASKS.items():
        if candidates := explanation["candidates"][task]:
            console.print(_candidate_table(title, candidates))
    console.print(Text(f"why:       {explanation['reason']}"))
    console.print(Text(f"runner-up: {explanation['runner_up']}"))


def show_audit(audit: dict[str, Any], console: Console) -> None:
    """Prints what /admin/cache/audit answered: per node, how its records differ from its pages."""
    table = _table("audit: pages by node, and how the records of them differ")
    table.add_column("node")
    for heading in ("pages", *DIFFERENCES):
        table.add_column(heading.replace("_", " "), justify="right")
    table.add_column("result")
    for name, node in audit["nodes"].items():
        result = "clean" if node["clean"] else node["problem"] or "differs"
        counts = (node[kind] for kind in DIFFERENCES)
        table.add_row(
            name, *map(str, (node["pages"], *counts)), "; ".join([result, *node["repairs"]])
        )
    console.print(table)


def _node_table(nodes: dict[str, dict[str, Any]]) -> Table:
    """Returns a table with one row per node: its pages, hits and counters."""
    table = _table("prefill (P) and decode (D) nodes")
    table.add_column("\nnode", no_wrap=True, min_width=max(map(len, nodes), default=4))
    table.add_column("\nrole", no_wrap=True)
    for heading in (
        *("pages\nheld", "\ncached", "\nfree"),
        *("tokens\nhit", "\ncomputed", "\nreused", "\nfetched"),
        *("pages\nout", "\nin", "\nevicted"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, node in nodes.items():
        table.add_row(
            name,
            ROLES[node["role"]] + (" drains" if node["draining"] else ""),
            *(_short(node["pages"][state]) for state in ("held", "cached", "free")),
            f"{node['token_hit_ratio']:.0%}",
            *(_short(node["counters"][name]) for name in SHOWN_COUNTERS),
        )
    return table


def _candidate_table(title: str, candidates: list[dict[str, Any]]) -> Table:
    """Returns a table with one row per candidate and the terms of its cost in milliseconds. The one
    that was chosen is bold, with an arrow."""
    table = _table(title)
    table.add_column("")
    table.add_column("node")
    table.add_column("pages", justify="right")
    table.add_column("fetched")
    for term in TERMS:
        table.add_column(term.replace("_", " "), justify="right")
    for one in candidates:
        source = f"{one['fetch_pages']} from {one['fetch_from']}" if one["fetch_from"] else ""
        table.add_row(
            "→" if one["chosen"] else "",
            one["node"],
            str(one["owned_pages"]),
            source,
            *(f"{one[f'{term}_ms']:.1f}" for term in TERMS),
            style="bold" if one["chosen"] else "",
        )
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE, padding=0)


def _short(number: int) -> str:
    """Returns a number as text of at most five characters: 99999, 100k, 1234k, 12M."""
    for unit, size in (("M", 10_000_000), ("k", 100_000)):
        if number >= size:
            return f"{number // (1_000_000 if unit == 'M' else 1_000)}{unit}"
    return str(number)
