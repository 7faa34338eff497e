"""Prints the requests of a cluster as a table: what each does, where, and since when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

NAME_WIDTH = 36
"""The most characters of a request's name, which a client may choose as long as it likes."""
STYLES = {"waiting": "yellow", "computing": "cyan", "answering": "green"}


def show_requests(requests: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints what /admin/requests answered."""
    if not requests:
        console.print("no such request")
        return
    console.print(request_table(requests))


def request_table(requests: Sequence[dict[str, Any]]) -> Table:
    """Returns a table with one row per request."""
    table = Table(box=box.SIMPLE, padding=0, title_justify="left")
    table.add_column("request", no_wrap=True, max_width=NAME_WIDTH)
    table.add_column("state", no_wrap=True)
    for heading in ("age s", "prompt", "cached", "answered", "first ms", "total ms", "tries"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("nodes", no_wrap=True)
    for one in requests:
        first_ms = one["first_token_ms"]
        table.add_row(
            Text(one["rid"]),
            Text(one["outcome"] or one["state"], style=_style(one)),
            f"{one['arrived_s_ago']:.1f}",
            str(one["prompt_tokens"]),
            str(one["cached_tokens"]),
            str(one["completion_tokens"]),
            "" if first_ms is None else f"{first_ms:.1f}",
            f"{one['total_ms']:.0f}",
            str(one["attempts"]),
            " → ".join(filter(None, (one["prefill_node"], one["decode_node"]))),
        )
    return table


def _style(request: dict[str, Any]) -> str:
    return "red" if request["error"] else STYLES.get(request["state"], "")
