"""The nodes, those that were lost a moment ago included. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from coordinator.core.core import CoordinatorCore
from coordinator.events.changes import WHY_GONE
from coordinator.events.event_log import NODE_ENDS
from coordinator.routing.registry import LiveNode
from protocol.counters import ratio
from protocol.ids import Role

GONE_SHOWN_S = 600.0
"""For how long a node that is gone has a row."""
HELD_UP_S = 1.0
"""A main loop that has not come round for longer is held up."""
SILENT_SHARE = 0.5
"""A node is silent when so much of its lease has passed without a heartbeat."""

NodeState = Literal["ready", "draining", "held up", "silent", "gone"]


class NodeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One node as the page shows it. What is unknown of a node that is gone is 0."""

    name: str
    role: Role | None
    state: NodeState
    is_draining: bool = False
    """Also of one that is silent or held up."""
    why: str = ""
    """What happened to a node that is gone."""
    device: str = ""
    heartbeat_s_ago: float = 0.0
    """Of a node that is gone: how long ago that was noted."""
    queue_s: float = 0.0
    """How long its prompts will keep it busy."""
    running: int = 0
    waiting: int = 0
    pages: int = 0
    held_pages: int = 0
    cached_pages: int = 0
    promised_pages: int = 0
    hit_ratio: float = 0.0
    """The share of prompt tokens that needed no computing here."""
    step_ms: float = 0.0
    prefill_tokens_per_s: float = 0.0
    preemptions: int = 0
    evictions: int = 0


def node_rows(core: CoordinatorCore, now: float) -> list[NodeRow]:
    """Returns a row for each live node, in the order of names, then those that are gone."""
    live = core.registry.live()
    rows = [_row(one, core, now) for one in live]
    return rows + _gone(core, {one.node.name for one in live}, now)


def _row(live: LiveNode, core: CoordinatorCore, now: float) -> NodeRow:
    load, counters = live.load, live.load.counters
    found = counters.reused_tokens + counters.fetched_tokens
    is_draining = live.node.name in core.placement.draining
    return NodeRow(
        name=live.node.name,
        role=load.role,
        state=_state(live, is_draining, now),
        is_draining=is_draining,
        device=live.info.device,
        heartbeat_s_ago=round(now - live.last_heartbeat, 2),
        queue_s=round(core.placement.queue_s(live.node, now), 4),
        running=load.num_running,
        waiting=load.num_waiting,
        pages=live.info.num_pages,
        held_pages=load.held_pages,
        cached_pages=load.cached_pages,
        promised_pages=load.promised_pages,
        hit_ratio=ratio(found, found + counters.computed_tokens),
        step_ms=round(load.step_s * 1e3, 3),
        prefill_tokens_per_s=round(load.prefill_tokens_per_s, 1),
        preemptions=counters.preemptions,
        evictions=counters.pages_evicted,
    )


def _state(live: LiveNode, is_draining: bool, now: float) -> NodeState:
    lease_s = live.lease_ends - live.last_heartbeat
    if now - live.last_heartbeat > SILENT_SHARE * lease_s:
        return "silent"
    if live.load.turn_s > HELD_UP_S:
        return "held up"
    return "draining" if is_draining else "ready"


def _gone(core: CoordinatorCore, live: set[str], now: float) -> list[NodeRow]:
    """Returns rows of names whose last incarnation ended lately, the last one first. One that left
    as it was told is no news after a restart, but is until then."""
    rows: dict[str, NodeRow] = {}
    for event in core.changes.log.newest_first():
        if now - event.at > GONE_SHOWN_S:
            break
        if event.kind in NODE_ENDS and event.node not in live:
            age_s = round(now - event.at, 2)
            row = NodeRow(
                name=event.node,
                role=event.role,
                state="gone",
                why=WHY_GONE[event.kind],
                heartbeat_s_ago=age_s,
            )
            rows.setdefault(event.node, row)
    return list(rows.values())
