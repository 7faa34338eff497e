"""Routes of single prompts over nodes that are described in a few words."""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec

from coordinator.routing.cost import EVICTED_REUSE, OWN_WORK_WEIGHT
from coordinator.routing.demand import Demand, PageOwners
from coordinator.routing.node_queue import Booking, NodeQueueEstimate
from coordinator.routing.policies import POLICIES
from coordinator.routing.prices.figures import NodeFigures
from coordinator.routing.prices.planned import PlannedWork
from coordinator.routing.prices.pricing import Cluster
from coordinator.routing.registry import Registry
from coordinator.routing.route import Route
from coordinator.routing.router import Router
from protocol.ids import Node
from protocol.messages import Load
from tests.support.coordinator.nodes import LAYOUT, load_of

EVICTED = EVICTED_REUSE * OWN_WORK_WEIGHT
IDLE = load_of()
PAGE_BYTES = LAYOUT.page_bytes
SLOW_LINK = PAGE_BYTES / 0.1
"""A page takes longer on the link than to compute (16 ms)."""


def backlog_of(work_s: float) -> NodeQueueEstimate:
    backlog = NodeQueueEstimate()
    backlog.sent(Booking(work_s, 0, 0.0))
    backlog.num_requests = 1
    return backlog


def cluster_of(
    registry: Registry,
    queues_s: Mapping[str, float] | None = None,
    hit_share: float = 0.0,
    planned_s: dict[str, float] | None = None,
    totals_s: Mapping[str, float] | None = None,
) -> Cluster:
    """`totals_s`: of idle nodes, the work that was ever sent there."""
    queues = {name: backlog_of(work_s) for name, work_s in (queues_s or {}).items()}
    queues |= {name: NodeQueueEstimate(total_s) for name, total_s in (totals_s or {}).items()}
    return Cluster(
        prefill=NodeFigures(registry.live("prefill"), queues),
        decode=NodeFigures(registry.live("decode"), queues),
        find=registry.get,
        link_bytes_per_s=registry.link_bytes_per_s,
        hit_share=hit_share,
        planned=PlannedWork({name: [work_s] for name, work_s in (planned_s or {}).items()}),
        now=0.0,
    )


def demand_of(num_tokens: int = 1600, avoid: tuple[str, ...] = ()) -> Demand:
    """8 pages for the answer, one to begin."""
    num_pages = LAYOUT.num_pages(num_tokens)
    return Demand(num_tokens, num_pages + 8, num_pages + 1, [], avoid)


def owners_of(
    owned: Mapping[str, int] | None = None, expected: Mapping[str, int] | None = None
) -> PageOwners:
    """`expected`: on top of what is owned."""
    owned_pages = {Node(name, 1): pages for name, pages in (owned or {}).items()}
    expected_pages = owned_pages | {Node(n, 1): pages for n, pages in (expected or {}).items()}
    return PageOwners(owned_pages, expected_pages)


def router_of(policy: str = "disaggregate") -> Router:
    return Router(POLICIES[policy](random.Random(0).random))


def route(
    registry: Registry,
    owned: Mapping[str, int] | None = None,
    expected: Mapping[str, int] | None = None,
    num_tokens: int = 1600,
    avoid: tuple[str, ...] = (),
    policy: str = "disaggregate",
    queues_s: Mapping[str, float] | None = None,
    hit_share: float = 0.0,
    planned_s: dict[str, float] | None = None,
) -> Route:
    return router_of(policy).route(
        demand_of(num_tokens, avoid),
        owners_of(owned, expected),
        cluster_of(registry, queues_s, hit_share, planned_s),
    )


def names(chosen: Route) -> tuple[str | None, str]:
    return (chosen.prefill.name if chosen.prefill else None, chosen.decode.name)


def fetch(chosen: Route) -> tuple[str, int] | None:
    return (chosen.fetch_from.name, chosen.fetch_pages) if chosen.fetch_from else None


def with_link(bytes_per_s: float, load: Load = IDLE) -> Load:
    return msgspec.structs.replace(load, link_bytes_per_s=bytes_per_s)
