"""Every metric of a coordinator, in the order in which /metrics and the documentation show them.
Pure.

A new one is a line here, and a line that counts.
"""

from __future__ import annotations

from protocol.telemetry.metric import Metric

SECONDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.25, 0.4, 0.5, 0.6, 0.75, 0.8),
    *(1.0, 2.0, 2.5, 4.0, 5.0, 6.0, 7.5, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 160.0, 200.0),
    *(400.0, 640.0),
)
"""Bounds that tell cache hits apart. They hold those of SGLang's and vLLM's histograms, so that an
expression which names a bucket of theirs finds it here."""
STAGE_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0),
    60.0,
)
GAP_SECONDS = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.075),
    *(0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.8, 1.0, 2.0, 2.5, 4.0, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
ERROR_SECONDS = (
    *(-10.0, -5.0, -2.0, -1.0, -0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0.0, 0.01, 0.02, 0.05, 0.1),
    *(0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
ROUTE_SECONDS = (0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1)
TOKENS = (
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5),
    *(2e5, 5e5, 1e6),
)

REQUESTS = Metric(
    "kvrelay_requests_total",
    "counter",
    "Requests that have ended, by how: stop, length, abort, or the kind of their error.",
    ("outcome",),
)
REFUSED = Metric(
    "kvrelay_requests_refused_total",
    "counter",
    "Requests that were refused at once with a 429: no place, or too late a turn.",
)
RESPONSES = Metric(
    "kvrelay_http_responses_total",
    "counter",
    "HTTP responses, by endpoint (other: all that do not generate) and status.",
    ("endpoint", "status"),
)
IN_PROGRESS = Metric(
    "kvrelay_requests_in_progress",
    "gauge",
    "Unfinished requests, each in one stage: waiting (bound to no node), computing (its prompt), "
    "answering.",
    ("stage",),
)
RUNNING = Metric(
    "kvrelay_requests_running",
    "gauge",
    "Unfinished requests that nodes work on: those in progress, without the waiting ones.",
)
FIRST_TOKEN = Metric(
    "kvrelay_time_to_first_token_seconds",
    "histogram",
    "From the arrival of a request to its first token, by how its prompt was computed: remote (a "
    "prefill node), fetched (pages came from an owner first), local (the node that answers).",
    ("path",),
    SECONDS,
)
TOKEN_GAP = Metric(
    "kvrelay_inter_token_latency_seconds",
    "histogram",
    "The time between two tokens of an answer. Tokens that come at once share the gap before them.",
    (),
    GAP_SECONDS,
)
END_TO_END = Metric(
    "kvrelay_e2e_request_latency_seconds",
    "histogram",
    "From the arrival of a request to its end.",
    ("outcome",),
    SECONDS,
)
QUEUE = Metric(
    "kvrelay_queue_seconds",
    "histogram",
    "How long a request waited here for a node, over all its attempts.",
    (),
    SECONDS,
)
PREFILL = Metric(
    "kvrelay_prefill_seconds",
    "histogram",
    "From when a node took a request until its first token was computed.",
    (),
    SECONDS,
)
TRANSFER_EXPOSED = Metric(
    "kvrelay_transfer_exposed_seconds",
    "histogram",
    "How long a request waited for pages when nothing was left to compute of its prompt.",
    (),
    STAGE_SECONDS,
)
FIRST_STEP = Metric(
    "kvrelay_first_decode_step_seconds",
    "histogram",
    "From the first token, or the last page if that came later, to the next tokens, which the "
    "decode node computes.",
    (),
    STAGE_SECONDS,
)
FORECAST_ERROR = Metric(
    "kvrelay_ttft_forecast_error_seconds",
    "histogram",
    "The time from routing to the first token, less what the router had predicted.",
    (),
    ERROR_SECONDS,
)
PROMPT_TOKENS = Metric("kvrelay_prompt_tokens_total", "counter", "Tokens of prompts.")
CACHED_TOKENS = Metric(
    "kvrelay_cached_tokens_total",
    "counter",
    "Tokens of prompts that needed no computing: local (the computing node had their pages), "
    "fetched (another one sent them).",
    ("source",),
)
GENERATION_TOKENS = Metric("kvrelay_generation_tokens_total", "counter", "Tokens of answers.")
PROMPT_LENGTH = Metric(
    "kvrelay_request_prompt_tokens", "histogram", "Tokens of a prompt.", (), TOKENS
)
ANSWER_LENGTH = Metric(
    "kvrelay_request_generation_tokens", "histogram", "Tokens of an answer.", (), TOKENS
)
TRANSFERRED_PAGES = Metric(
    "kvrelay_transferred_pages_total", "counter", "Pages that prefill nodes sent for requests."
)
ROUTES = Metric(
    "kvrelay_routes_total", "counter", "Attempts that were sent to nodes, by path.", ("path",)
)
ATTEMPTS_LOST = Metric(
    "kvrelay_attempts_lost_total",
    "counter",
    "Attempts that ended before their request did, by why: node_lost, failed, busy, paused.",
    ("reason",),
)
RESUMED = Metric(
    "kvrelay_streams_resumed_total",
    "counter",
    "Answers that had begun, and went on at another node.",
)
EARLY_DIVERGENCES = Metric(
    "kvrelay_early_divergences_total",
    "counter",
    "Requests whose prompt began as one that is cached, and went its own way before token 256.",
)
STALLED_CLIENTS = Metric(
    "kvrelay_stalled_clients_total",
    "counter",
    "Connections that were given up because their client did not read.",
)
NODES = Metric(
    "kvrelay_nodes", "gauge", "Live nodes, by role and state: ready, draining.", ("role", "state")
)
LEASES_LOST = Metric(
    "kvrelay_leases_lost_total",
    "counter",
    "Nodes whose lease ended without a goodbye, or whose companion said that they died.",
)
INDEX_PAGES = Metric(
    "kvrelay_index_pages",
    "gauge",
    "Pages that the index knows: unique, and duplicate (further owners of the same).",
    ("kind",),
)
INDEX_BYTES = Metric("kvrelay_index_bytes", "gauge", "Memory of the index.")
INDEX_LAG = Metric(
    "kvrelay_index_lag_seconds", "gauge", "The age of the oldest ownership change not read yet."
)
INDEX_RELOADS = Metric(
    "kvrelay_index_reloads_total",
    "counter",
    "How often a node's record was read from Redis as a whole, after a gap or a restart.",
)
REDIS_UP = Metric("kvrelay_redis_up", "gauge", "1 while Redis answers, else 0.")
REFUSALS = Metric(
    "kvrelay_peer_refusals_total",
    "counter",
    "Connections without the cluster secret, and messages that could not be believed.",
)
CACHE_USAGE = Metric(
    "kvrelay_cache_usage_ratio",
    "gauge",
    "The share of all nodes' KV pages that requests hold, from 0 to 1.",
)
BUILD_INFO = Metric("kvrelay_build_info", "gauge", "1, with the version as a label.", ("version",))
CACHE_INFO = Metric(
    "kvrelay_cache_info",
    "gauge",
    "1, with the tokens of a page and the pages of all nodes as labels.",
    ("page_size", "pages"),
)

METRICS = (
    *(REQUESTS, REFUSED, RESPONSES, IN_PROGRESS, RUNNING),
    *(FIRST_TOKEN, TOKEN_GAP, END_TO_END, QUEUE, PREFILL, TRANSFER_EXPOSED, FIRST_STEP),
    *(FORECAST_ERROR, PROMPT_TOKENS, CACHED_TOKENS, GENERATION_TOKENS),
    *(PROMPT_LENGTH, ANSWER_LENGTH, TRANSFERRED_PAGES, ROUTES, ATTEMPTS_LOST, RESUMED),
    *(EARLY_DIVERGENCES, STALLED_CLIENTS, NODES, LEASES_LOST, INDEX_PAGES, INDEX_BYTES),
    *(INDEX_LAG, INDEX_RELOADS, REDIS_UP, REFUSALS, CACHE_USAGE, BUILD_INFO, CACHE_INFO),
)
OF_THE_CLUSTER = (
    NODES,
    INDEX_PAGES,
    INDEX_BYTES,
    INDEX_LAG,
    REDIS_UP,
    CACHE_USAGE,
    CACHE_INFO,
    BUILD_INFO,
)
"""What every coordinator knows alike: of several behind one port, one tells it."""
