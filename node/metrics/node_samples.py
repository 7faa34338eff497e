"""Makes samples of what a node tells in its heartbeats. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from node.metrics import table
from protocol.messages import Health, Load, NodeInfo
from protocol.telemetry.metric import Measures, Sample


def health_samples(health: Health) -> Iterator[Sample]:
    """Returns what is known of a node at any time, before it has told anything too."""
    yield Sample(table.UP.name, (), float(health.is_ready))
    yield Sample(table.TURN.name, (), health.turn_s)


def node_samples(info: NodeInfo, load: Load) -> Iterator[Sample]:
    """Returns the samples of what a node has told last."""
    measures = Measures()
    _queues(measures, load)
    _pages(measures, info, load)
    _counters(measures, load)
    _transfers(measures, load)
    for kind, histogram in load.step_times.items():
        measures.histogram(table.STEP, kind).add(histogram)
    return measures.samples()


def _queues(measures: Measures, load: Load) -> None:
    rate = load.prefill_tokens_per_s
    measures.set(table.RUNNING, load.num_running)
    measures.set(table.WAITING, load.num_waiting)
    measures.set(table.QUEUED_TOKENS, load.queued_tokens)
    measures.set(table.QUEUED_SECONDS, load.queued_tokens / rate if rate else 0.0)
    measures.set(table.PREFILL_RATE, rate)
    measures.set(table.MEMORY, load.rss_bytes)


def _pages(measures: Measures, info: NodeInfo, load: Load) -> None:
    measures.set(table.PAGES, load.free_pages, "free")
    measures.set(table.PAGES, load.cached_pages, "cached")
    measures.set(table.PAGES, load.held_pages, "held")
    measures.set(table.PROMISED_PAGES, load.promised_pages)
    measures.set(table.USAGE, load.held_pages / max(info.num_pages, 1))
    layout = info.layout
    labels = (info.device, str(layout.page_size), str(info.num_pages), layout.dtype)
    measures.set(table.INFO, 1, *labels)


def _counters(measures: Measures, load: Load) -> None:
    counters = load.counters
    measures.set(table.REQUESTS, counters.requests)
    measures.set(table.REQUESTS_HIT, counters.requests_hit)
    measures.set(table.PROMPT_TOKENS, counters.computed_tokens, "computed")
    measures.set(table.PROMPT_TOKENS, counters.reused_tokens, "reused")
    measures.set(table.PROMPT_TOKENS, counters.fetched_tokens, "fetched")
    measures.set(table.GENERATED, counters.generated_tokens)
    measures.set(table.PREEMPTIONS, counters.preemptions)
    measures.set(table.EVICTED, counters.pages_evicted)
    measures.set(table.PAGES_MOVED, counters.pages_sent, "sent")
    measures.set(table.PAGES_MOVED, counters.pages_received, "received")
    measures.set(table.PAGES_MOVED, counters.pages_fetched, "fetched")
    measures.set(table.BUSY, counters.busy_s)
    measures.set(table.COMPILES, counters.compiles_while_serving)
    measures.set(table.REFUSALS, counters.refusals)
    measures.set(table.TRANSFER_FAILURES, counters.transfer_failures)


def _transfers(measures: Measures, load: Load) -> None:
    for link in load.links:
        kind = (link.direction, link.transport or "none")
        measures.count(table.TRANSFER_BYTES, *kind, by=link.bytes_total)
        measures.count(table.TRANSFER_BUSY, *kind, by=link.busy_s_total)
        measures.count(table.TRANSFER_EXPOSED, by=link.exposed_s_total)
