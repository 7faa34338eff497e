"""What a coordinator knows of the cluster at the moment of a scrape, as samples."""

from __future__ import annotations

from collections import Counter

from coordinator.metrics import table
from coordinator.service import Service
from protocol.telemetry.metric import Measures
from protocol.trust.versions import RELEASE


def measured_now(service: Service, measures: Measures) -> None:
    """Gives the gauges in `measures`, and the counters that others count, their values of now."""
    _requests(service, measures)
    _nodes(service, measures)
    index, mirror = service.core.index, service.follower.mirror
    num_unique = index.num_unique_pages
    measures.set(table.INDEX_PAGES, num_unique, "unique")
    measures.set(table.INDEX_PAGES, index.num_owned_pages - num_unique, "duplicate")
    measures.set(table.INDEX_BYTES, index.num_bytes)
    measures.set(table.INDEX_LAG, mirror.lag_s)
    measures.set(table.INDEX_RELOADS, mirror.num_reloads)
    measures.set(table.REDIS_UP, float(mirror.is_connected))
    measures.set(table.REFUSALS, service.num_refusals)
    measures.set(table.BUILD_INFO, 1, RELEASE)


def _requests(service: Service, measures: Measures) -> None:
    stages = service.core.num_in_stages()
    for stage, number in stages.items():
        measures.set(table.IN_PROGRESS, number, stage)
    measures.set(table.RUNNING, sum(stages.values()) - stages["waiting"])


def _nodes(service: Service, measures: Measures) -> None:
    live = service.core.registry.live()
    draining = service.core.placement.draining
    found = Counter(
        (one.load.role, "draining" if one.node.name in draining else "ready") for one in live
    )
    for role in ("prefill", "decode"):
        for state in ("ready", "draining"):
            measures.set(table.NODES, found[role, state], role, state)
    num_pages = sum(one.info.num_pages for one in live)
    num_held = sum(one.load.held_pages for one in live)
    measures.set(table.CACHE_USAGE, num_held / num_pages if num_pages else 0.0)
    if live:
        page_size = live[0].info.layout.page_size
        measures.set(table.CACHE_INFO, 1, str(page_size), str(num_pages))
