"""`LiveView`: one picture of the cluster, for the live page. Pure.

It reads what the core knows anyway, and keeps nothing of its own but what a moving minute needs:
who looks for the first time has no minute behind them yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from coordinator.core.core import CoordinatorCore
from coordinator.core.hot_prefixes import HotPrefix
from coordinator.live.cache import CacheView, cache_view
from coordinator.live.links import LinkRow, LinkRows
from coordinator.live.nodes import NodeRow, node_rows
from coordinator.live.percentiles import MovingWindow, histogram_percentile
from coordinator.live.recent_requests import WINDOW_S, RecentRequests
from coordinator.live.requests import RequestRow, RoutingDecision, decisions, failed, in_flight
from coordinator.live.tiles import StatusTile, Vitals, tiles_of
from coordinator.live.waterfall import Waterfall, waterfall_of
from coordinator.metrics import table


@dataclass(frozen=True)
class Surroundings:
    """What a snapshot tells that the core does not know."""

    coordinator: str
    """The address at which nodes reach this coordinator."""
    version: str
    model: str
    policy: str
    num_coordinators: int
    is_connected: bool
    """Redis answers."""
    lag_s: float
    max_ttft_s: float
    words_of: Callable[[HotPrefix], str | None]
    """How a prefix begins, if that may be shown."""


class EventRow(msgspec.Struct, frozen=True):
    """One line of the event log."""

    number: int
    unix_s: float
    kind: str
    node: str
    text: str


class Snapshot(msgspec.Struct, frozen=True):
    """Everything that the live page shows, of one moment."""

    unix_s: float
    coordinator: str
    version: str
    model: str
    policy: str
    num_coordinators: int
    """Requests and decisions are of this one of them."""
    tiles: list[StatusTile]
    waterfall: Waterfall
    nodes: list[NodeRow]
    links: list[LinkRow]
    cache: CacheView
    decisions: list[RoutingDecision]
    in_flight: list[RequestRow]
    num_in_flight: int
    failed: list[RequestRow]
    events: list[EventRow]


class LiveView:
    """Makes snapshots, about one a second as long as somebody looks."""

    def __init__(self) -> None:
        self._requests = RecentRequests()
        self._links = LinkRows()
        self._gaps: MovingWindow[list[int]] = MovingWindow(WINDOW_S)

    def restart(self) -> None:
        """Forgets the last minute: nobody has looked for a while."""
        self._links.clear()
        self._gaps.clear()

    def snapshot(
        self, core: CoordinatorCore, around: Surroundings, now: float, unix_s: float
    ) -> Snapshot:
        """Returns the picture of now. `now` is of the core's clock; `unix_s` is the same moment by
        the wall's."""
        self._requests.update(core.statistics.ended_requests.newest_first(now), now)
        waterfall = waterfall_of(self._requests.by_first_token)
        nodes = node_rows(core, now)
        return Snapshot(
            unix_s=round(unix_s, 3),
            coordinator=around.coordinator,
            version=around.version,
            model=around.model,
            policy=around.policy,
            num_coordinators=around.num_coordinators,
            tiles=tiles_of(self._vitals(core, around, waterfall, nodes, now)),
            waterfall=waterfall,
            nodes=nodes,
            links=self._links.rows(core.registry.live(), now),
            cache=cache_view(core, around.words_of, now),
            decisions=decisions(core, now),
            in_flight=in_flight(core, now),
            num_in_flight=core.num_unfinished,
            failed=failed(core, now),
            events=[
                EventRow(
                    one.number, round(unix_s - (now - one.at), 3), one.kind, one.node, one.text
                )
                for one in core.changes.log.newest_first()
            ],
        )

    def _vitals(
        self,
        core: CoordinatorCore,
        around: Surroundings,
        waterfall: Waterfall,
        nodes: list[NodeRow],
        now: float,
    ) -> Vitals:
        counters, seconds = core.statistics.totals.last(WINDOW_S, now)
        goals_s = [live.info.max_itl_s for live in core.registry.live() if live.info.max_itl_s]
        return Vitals(
            counters=counters,
            seconds=seconds,
            num_resumed=self._requests.num_resumed,
            waterfall=waterfall,
            max_ttft_ms=around.max_ttft_s * 1e3,
            gap_p99_ms=self._gap_p99_ms(core, now),
            max_gap_ms=max(goals_s, default=0.0) * 1e3,
            nodes=nodes,
            is_connected=around.is_connected,
            lag_s=around.lag_s,
            pause_mode=core.pause.mode or "",
            stages=core.num_in_stages(),
        )

    def _gap_p99_ms(self, core: CoordinatorCore, now: float) -> float | None:
        """Returns the percentile over the gaps since the oldest look of the last minute."""
        counts = list(core.statistics.requests.measures.histogram(table.TOKEN_GAP).counts)
        _, before = self._gaps.push(counts, now)
        new = [count - old for count, old in zip(counts, before, strict=True)]
        gap_s = histogram_percentile(table.GAP_SECONDS, new, 0.99)
        return None if gap_s is None else round(gap_s * 1e3, 2)
