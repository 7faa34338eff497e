"""What goes from node to node: one row for each pair that has a link. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from coordinator.live.percentiles import MovingWindow
from coordinator.live.recent_requests import WINDOW_S
from coordinator.routing.registry import LiveNode
from protocol.messages import LinkLoad

Pair = tuple[str, str]
"""The names of sender and receiver."""


class LinkRow(msgspec.Struct, frozen=True):
    """What went from one node to another."""

    sender: str
    receiver: str
    transport: str
    is_open: bool
    gigabytes_per_s: float | None
    """While bytes were under way; None if there were none. Of the last minute, or of the whole time
    if nothing moved within it."""
    exposed_share: float | None
    """How much of that time requests waited for these pages while nothing was computed for them."""
    bytes_total: int
    failures_total: int
    recent_failures: int
    """Of the last minute, as far as somebody looked."""
    moves: bool
    """Something was moved in the last minute."""


class LinkTotals(msgspec.Struct):
    """What both ends of a link have counted."""

    transport: str = ""
    is_open: bool = False
    bytes_total: int = 0
    busy_s: float = 0.0
    exposed_s: float = 0.0
    failures: int = 0


class LinkRows:
    """Makes the rows; remembers the totals of the last minute."""

    def __init__(self) -> None:
        self._window: MovingWindow[Mapping[Pair, LinkTotals]] = MovingWindow(WINDOW_S)

    def rows(self, live: Iterable[LiveNode], now: float) -> list[LinkRow]:
        """Returns the rows in the order of names."""
        totals = link_totals(live)
        _, before = self._window.push(totals, now)
        return [_row(pair, totals[pair], before.get(pair, LinkTotals())) for pair in sorted(totals)]

    def clear(self) -> None:
        """Forgets the last minute."""
        self._window.clear()


def link_totals(live: Iterable[LiveNode]) -> dict[Pair, LinkTotals]:
    """Returns the totals of each pair of nodes. The receiver knows what was waited for; of the rest
    the sender is believed, unless it tells nothing of the link."""
    totals: dict[Pair, LinkTotals] = {}
    for one in live:
        for link in one.load.links:
            is_out = link.direction == "out"
            pair = (one.node.name, link.peer) if is_out else (link.peer, one.node.name)
            _add(totals.setdefault(pair, LinkTotals()), link, is_out)
    return totals


def _add(totals: LinkTotals, link: LinkLoad, is_out: bool) -> None:
    if not is_out:
        totals.exposed_s = link.exposed_s_total
    if is_out or not totals.busy_s:
        totals.busy_s = link.busy_s_total
    totals.bytes_total = max(totals.bytes_total, link.bytes_total)
    totals.failures = max(totals.failures, link.failures_total)
    totals.transport = link.transport or totals.transport
    totals.is_open = totals.is_open or link.is_open


def _row(pair: Pair, totals: LinkTotals, before: LinkTotals) -> LinkRow:
    moves = totals.bytes_total > before.bytes_total > 0
    since = before if moves else LinkTotals()
    busy_s = totals.busy_s - since.busy_s
    num_bytes = totals.bytes_total - since.bytes_total
    exposed_s = totals.exposed_s - since.exposed_s
    return LinkRow(
        sender=pair[0],
        receiver=pair[1],
        transport=totals.transport,
        is_open=totals.is_open,
        gigabytes_per_s=round(num_bytes / busy_s / 1e9, 4) if busy_s > 0 else None,
        exposed_share=round(min(1.0, max(0.0, exposed_s) / busy_s), 4) if busy_s > 0 else None,
        bytes_total=totals.bytes_total,
        failures_total=totals.failures,
        recent_failures=max(0, totals.failures - before.failures) if before.bytes_total else 0,
        moves=moves,
    )
