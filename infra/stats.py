"""Tables for people: nodes and caches of a running cluster."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def show_stats(
    stats: dict[str, Any], nodes: list[dict[str, Any]], console: Console | None = None
) -> None:
    console = console or Console()
    console.print(_node_table(stats, nodes))
    cluster = stats["cluster"]
    console.print(
        f"{cluster['requests']} requests, {cluster['prompt_tokens']} prompt tokens, "
        f"{cluster['cached_tokens']} of them cached ({cluster['token_hit_ratio']:.0%}); "
        f"{cluster['transferred_pages']} pages transferred; "
        f"{cluster['unique_owned_pages']} pages owned, "
        f"{cluster['duplicate_owned_pages']} replicas; "
        f"Redis {'connected' if cluster['redis_connected'] else 'unreachable'}"
    )


def _node_table(stats: dict[str, Any], nodes: list[dict[str, Any]]) -> Table:
    table = Table(title="nodes", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("node")
    table.add_column("role")
    for heading in ("held", "cached", "free", "computed", "reused", "made", "out", "in"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.caption = "pages held, cached, free; tokens computed, reused, made; pages sent out, in"
    for node in nodes:
        one = stats["nodes"][node["name"]]
        pages = one["pages"]
        table.add_row(
            node["name"],
            node["role"],
            *(str(pages[key]) for key in ("held", "cached", "free")),
            *(str(one[f"tokens_{key}"]) for key in ("computed", "reused", "generated")),
            str(one["pages_sent"]),
            str(one["pages_received"]),
        )
    return table
