"""Prints the timeline of one request as a waterfall: a line per span, with a bar at its place."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

BAR_WIDTH = 40
"""Characters that stand for the time until the first token, and for the whole time after it."""


def show_timeline(timeline: dict[str, Any], console: Console) -> None:
    """Prints what /admin/requests/{rid} answered."""
    console.print(Text(headline(timeline)))
    console.print(_waterfall(timeline))
    console.print(Text(verdict(timeline)))
    if timeline["error"]:
        console.print(Text(f"it failed: {timeline['error']}"))
    if timeline["route_reason"]:
        console.print(Text(f"why there: {timeline['route_reason']}"))


def headline(timeline: dict[str, Any]) -> str:
    """Returns a line that says which request it is, and what became of it."""
    state = timeline["outcome"] or timeline["state"]
    return (
        f"request {timeline['rid']}: {state}, {timeline['prompt_tokens']} prompt tokens "
        f"({timeline['cached_tokens']} cached), {timeline['completion_tokens']} answered, "
        f"attempts {timeline['attempts']}; it arrived {timeline['arrived_s_ago']:.1f} s ago"
    )


def verdict(timeline: dict[str, Any]) -> str:
    """Returns the sentence that says how much of the time was computing."""
    until = timeline["first_token_ms"]
    computing = f"computing is {timeline['computing_ms']:.1f} of"
    if until is None:
        return f"{computing} {timeline['total_ms']:.1f} ms, and no token has come"
    return f"{computing} {until:.1f} ms to the first token; {timeline['total_ms']:.1f} ms in all"


def _waterfall(timeline: dict[str, Any]) -> Table:
    # To the first token there are many short spans, behind it few long ones: both have a scale of
    # their own, or the short ones could not be seen.
    total_ms = timeline["total_ms"]
    first_ms = timeline["first_token_ms"]
    middle_ms = total_ms if first_ms is None else min(first_ms, total_ms)
    table = Table(box=box.SIMPLE, padding=0)
    table.add_column("span", no_wrap=True)
    table.add_column("where", no_wrap=True)
    table.add_column("from ms", justify="right")
    table.add_column("ms", justify="right")
    table.add_column(_scales(middle_ms, total_ms), min_width=BAR_WIDTH, no_wrap=True)
    table.add_column("")
    attempt = 1
    for span in timeline["spans"]:
        if span["attempt"] > attempt:
            attempt = span["attempt"]
            table.add_section()
        table.add_row(
            span["name"],
            span["where"],
            f"{span['start_ms']:.2f}",
            f"{span['duration_ms']:.2f}",
            Text(_bar(span, middle_ms, total_ms)),
            Text(_details(span, attempt)),
        )
    return table


def _scales(middle_ms: float, total_ms: float) -> str:
    """Returns the heading of the bars: the time that a whole line stands for, before the first
    token and behind it."""
    first = f"0 to {middle_ms:.1f} ms"
    return first if middle_ms >= total_ms else f"{first}, then anew to {total_ms:.1f} ms"


def _bar(span: dict[str, Any], middle_ms: float, total_ms: float) -> str:
    """Returns the bar of a span, at its place among all spans on its side of the first token."""
    begins, ends = (0.0, middle_ms)
    if span["start_ms"] >= middle_ms:
        begins, ends = middle_ms, total_ms
    scale = BAR_WIDTH / (ends - begins) if ends > begins else 0.0
    start = min(round((span["start_ms"] - begins) * scale), BAR_WIDTH - 1)
    length = max(1, round(span["duration_ms"] * scale))
    return " " * start + "█" * min(length, BAR_WIDTH - start)


def _details(span: dict[str, Any], attempt: int) -> str:
    details = [f"{name.replace('_', ' ')} {value}" for name, value in span["details"].items()]
    if attempt > 1 and span["attempt"]:
        details.insert(0, f"attempt {span['attempt']}")
    return ", ".join(details)
