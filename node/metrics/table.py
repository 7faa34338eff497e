"""Every metric of a node, in the order in which /metrics and the documentation show them. Pure."""

from __future__ import annotations

from protocol.telemetry.metric import Metric

STEP_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0),
    *(2.0, 5.0, 10.0),
)

UP = Metric(
    "kvrelay_node_ready",
    "gauge",
    "1 while the node serves: its main loop goes round, and its lease is kept.",
)
TURN = Metric(
    "kvrelay_node_turn_seconds",
    "gauge",
    "For how long the main loop has not come round. Beyond --stall-s the node gives up its lease.",
)
RUNNING = Metric("kvrelay_running_requests", "gauge", "Requests that have pages on this node.")
WAITING = Metric("kvrelay_waiting_requests", "gauge", "Requests that wait for pages.")
QUEUED_TOKENS = Metric(
    "kvrelay_queued_tokens", "gauge", "Prompt tokens that are accepted and not computed yet."
)
QUEUED_SECONDS = Metric(
    "kvrelay_queued_work_seconds",
    "gauge",
    "How long the queued tokens take at the measured speed; 0 until that is measured.",
)
PAGES = Metric(
    "kvrelay_pages",
    "gauge",
    "KV pages by state: free, cached (no request holds them), held. Their sum is all there are.",
    ("state",),
)
PROMISED_PAGES = Metric(
    "kvrelay_promised_pages",
    "gauge",
    "How many of the free and cached pages are spoken for by answers that will grow.",
)
USAGE = Metric(
    "kvrelay_page_usage_ratio", "gauge", "The share of pages that requests hold, from 0 to 1."
)
REQUESTS = Metric("kvrelay_node_requests_total", "counter", "Requests that were admitted.")
REQUESTS_HIT = Metric(
    "kvrelay_node_requests_hit_total", "counter", "Requests that found pages of their prompt here."
)
PROMPT_TOKENS = Metric(
    "kvrelay_prefill_tokens_total",
    "counter",
    "Prompt tokens by where their KV came from: computed, reused (cached here), fetched.",
    ("source",),
)
GENERATED = Metric("kvrelay_generated_tokens_total", "counter", "Tokens of answers.")
PREEMPTIONS = Metric(
    "kvrelay_preemptions_total", "counter", "Answers that gave their pages to older ones."
)
EVICTED = Metric(
    "kvrelay_pages_evicted_total", "counter", "Cached pages that gave way to new ones."
)
PAGES_MOVED = Metric(
    "kvrelay_pages_moved_total",
    "counter",
    "Pages that were sent, received, and, among the received ones, fetched from an owner.",
    ("kind",),
)
STEP = Metric(
    "kvrelay_step_seconds",
    "histogram",
    "Steps of the model, by kind: prompt (with a chunk of one), decode.",
    ("kind",),
    STEP_SECONDS,
)
BUSY = Metric("kvrelay_busy_seconds_total", "counter", "Seconds spent in steps.")
PREFILL_RATE = Metric(
    "kvrelay_prefill_tokens_per_second", "gauge", "The measured speed of computing prompts."
)
TRANSFER_BYTES = Metric(
    "kvrelay_transfer_bytes_total",
    "counter",
    "Bytes of pages, by direction (in, out) and transport, over the links that are told.",
    ("direction", "transport"),
)
TRANSFER_BUSY = Metric(
    "kvrelay_transfer_busy_seconds_total",
    "counter",
    "Seconds during which pages were under way, by direction and transport.",
    ("direction", "transport"),
)
TRANSFER_EXPOSED = Metric(
    "kvrelay_node_transfer_exposed_seconds_total",
    "counter",
    "Seconds that requests waited for pages while nothing was computed for them.",
)
TRANSFER_FAILURES = Metric(
    "kvrelay_transfer_failures_total",
    "counter",
    "Transfers of pages that broke, were late or were refused.",
)
COMPILES = Metric(
    "kvrelay_compiles_while_serving_total",
    "counter",
    "Kernels and graphs that were compiled after the node was ready. Each held up its requests.",
)
REFUSALS = Metric(
    "kvrelay_node_peer_refusals_total",
    "counter",
    "Connections without the cluster secret, and messages that could not be believed.",
)
MEMORY = Metric("kvrelay_node_memory_bytes", "gauge", "Resident memory of the node's main process.")
INFO = Metric(
    "kvrelay_node_info",
    "gauge",
    "1, with the device, the tokens of a page, the pages and the KV's dtype as labels.",
    ("device", "page_size", "pages", "dtype"),
)

METRICS = (
    *(UP, TURN, RUNNING, WAITING, QUEUED_TOKENS, QUEUED_SECONDS, PAGES, PROMISED_PAGES, USAGE),
    *(REQUESTS, REQUESTS_HIT, PROMPT_TOKENS, GENERATED, PREEMPTIONS, EVICTED, PAGES_MOVED, STEP),
    *(BUSY, PREFILL_RATE, TRANSFER_BYTES, TRANSFER_BUSY, TRANSFER_EXPOSED, TRANSFER_FAILURES),
    *(COMPILES, REFUSALS, MEMORY, INFO),
)
