"""Writes infra/monitoring/grafana/kvrelay.json: the Grafana dashboard, in the order of an incident:
what is broken, where, why.

`python -m infra.monitoring.dashboard` writes the file; a test fails while it is not what this
module would write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FILE = Path("infra/monitoring/grafana/kvrelay.json")
COLUMNS = 24
HEIGHT = 7
SOURCE = {"type": "prometheus", "uid": "${source}"}

Unit = Literal["s", "reqps", "percentunit", "short", "Bps", "ops"]


@dataclass(frozen=True)
class Panel:
    """One chart: its title, what it says, and its queries by their legends."""

    title: str
    help: str
    unit: Unit
    queries: tuple[tuple[str, str], ...]
    width: int = 8
    kind: Literal["timeseries", "stat"] = "timeseries"
    is_stacked: bool = False


@dataclass(frozen=True)
class Row:
    """A question of an operator, and the panels that answer it."""

    title: str
    panels: tuple[Panel, ...]


def quantile(share: float, name: str, by: str = "") -> str:
    """Returns the query for a quantile of a histogram, for each value of the labels `by`."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({name}_bucket[$__rate_interval])))"


def rate(name: str, by: str = "", selector: str = "") -> str:
    """Returns the query for the rate of a counter, for each value of the labels `by`."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({name}{selector}[$__rate_interval]))"


def mean(name: str) -> str:
    """Returns the query for the mean of a histogram."""
    return f"{rate(name + '_sum')} / {rate(name + '_count')}"


FIRST_TOKEN = "kvrelay_time_to_first_token_seconds"
ROWS = (
    Row(
        "What do users see?",
        (
            Panel(
                "Requests",
                "Requests that end, by how.",
                "reqps",
                (("{{outcome}}", rate("kvrelay_requests_total", "outcome")),),
            ),
            Panel(
                "Time to first token",
                "From arrival to the first token.",
                "s",
                (
                    ("median", quantile(0.5, FIRST_TOKEN)),
                    ("p90", quantile(0.9, FIRST_TOKEN)),
                    ("p99", quantile(0.99, FIRST_TOKEN)),
                ),
            ),
            Panel(
                "Time between tokens",
                "Gaps within answers.",
                "s",
                (
                    ("median", quantile(0.5, "kvrelay_inter_token_latency_seconds")),
                    ("p99", quantile(0.99, "kvrelay_inter_token_latency_seconds")),
                ),
            ),
            Panel(
                "Refusals and failures",
                "429s, attempts that were lost, and streams that went on elsewhere.",
                "reqps",
                (
                    ("refused (429)", rate("kvrelay_requests_refused_total")),
                    ("attempts lost: {{reason}}", rate("kvrelay_attempts_lost_total", "reason")),
                    ("streams resumed", rate("kvrelay_streams_resumed_total")),
                    ("5xx", rate("kvrelay_http_responses_total", selector='{status=~"5.."}')),
                ),
            ),
            Panel(
                "In progress",
                "Unfinished requests, each in one stage.",
                "short",
                (("{{stage}}", "sum by (stage) (kvrelay_requests_in_progress)"),),
                is_stacked=True,
            ),
            Panel(
                "Nodes",
                "Live nodes by role and state.",
                "short",
                (("{{role}} {{state}}", "max by (role, state) (kvrelay_nodes)"),),
            ),
        ),
    ),
    Row(
        "Where does the first token's time go?",
        (
            Panel(
                "Parts of the first token, means",
                "Waiting here, computing, waiting for pages, and the first step of the decode "
                "node. Exposed transfer is what disaggregation costs a user.",
                "s",
                (
                    ("wait", mean("kvrelay_queue_seconds")),
                    ("prefill", mean("kvrelay_prefill_seconds")),
                    ("exposed transfer", mean("kvrelay_transfer_exposed_seconds")),
                    ("first decode step", mean("kvrelay_first_decode_step_seconds")),
                ),
                width=12,
                is_stacked=True,
            ),
            Panel(
                "Parts of the first token, p99",
                "The same at the 99th percentile; they do not add up.",
                "s",
                (
                    ("wait", quantile(0.99, "kvrelay_queue_seconds")),
                    ("prefill", quantile(0.99, "kvrelay_prefill_seconds")),
                    ("exposed transfer", quantile(0.99, "kvrelay_transfer_exposed_seconds")),
                    ("first decode step", quantile(0.99, "kvrelay_first_decode_step_seconds")),
                ),
                width=12,
            ),
            Panel(
                "First token by path",
                "Prompts that a prefill node computes, that are fetched from an owner first, and "
                "that the answering node computes.",
                "s",
                (("{{path}}", quantile(0.9, FIRST_TOKEN, "path")),),
            ),
            Panel(
                "Forecast error",
                "The first token's time less what the router had predicted.",
                "s",
                (
                    ("p10", quantile(0.1, "kvrelay_ttft_forecast_error_seconds")),
                    ("median", quantile(0.5, "kvrelay_ttft_forecast_error_seconds")),
                    ("p90", quantile(0.9, "kvrelay_ttft_forecast_error_seconds")),
                ),
            ),
            Panel(
                "Routes",
                "Attempts that are sent to nodes, by path.",
                "reqps",
                (("{{path}}", rate("kvrelay_routes_total", "path")),),
                is_stacked=True,
            ),
        ),
    ),
    Row(
        "What saves work?",
        (
            Panel(
                "Cached share of prompts",
                "Tokens of prompts that needed no computing, of all tokens of prompts.",
                "percentunit",
                (
                    (
                        "{{source}}",
                        f"{rate('kvrelay_cached_tokens_total', 'source')} / ignoring(source) "
                        f"group_left {rate('kvrelay_prompt_tokens_total')}",
                    ),
                ),
                is_stacked=True,
            ),
            Panel(
                "Index",
                "Pages that the cluster owns: unique ones, and further copies.",
                "short",
                (("{{kind}}", "max by (kind) (kvrelay_index_pages)"),),
                is_stacked=True,
            ),
            Panel(
                "Evicted pages",
                "Cached pages that gave way to new ones.",
                "ops",
                (("{{node}}", rate("kvrelay_pages_evicted_total", "node")),),
            ),
        ),
    ),
    Row(
        "How are the nodes?",
        (
            Panel(
                "Queued work",
                "How long the queued prompts keep each node busy.",
                "s",
                (("{{node}}", "max by (node) (kvrelay_queued_work_seconds)"),),
            ),
            Panel(
                "Pages that requests hold",
                "The share of each node's KV pages.",
                "percentunit",
                (("{{node}}", "max by (node) (kvrelay_page_usage_ratio)"),),
            ),
            Panel(
                "Steps without prompts, p90",
                "How long a decode step takes on each node.",
                "s",
                (
                    (
                        "{{node}}",
                        "histogram_quantile(0.9, sum by (le, node) "
                        '(rate(kvrelay_step_seconds_bucket{kind="decode"}[$__rate_interval])))',
                    ),
                ),
            ),
            Panel(
                "Busy",
                "The share of time spent in steps.",
                "percentunit",
                (("{{node}}", rate("kvrelay_busy_seconds_total", "node")),),
            ),
            Panel(
                "Pages between nodes",
                "Bytes of pages that come in, by transport.",
                "Bps",
                (
                    (
                        "{{transport}}",
                        rate("kvrelay_transfer_bytes_total", "transport", '{direction="in"}'),
                    ),
                ),
            ),
            Panel(
                "Trouble",
                "Failed transfers, preempted answers, compiles while serving, lost leases.",
                "ops",
                (
                    ("transfer failures {{node}}", rate("kvrelay_transfer_failures_total", "node")),
                    ("preemptions {{node}}", rate("kvrelay_preemptions_total", "node")),
                    ("compiles {{node}}", rate("kvrelay_compiles_while_serving_total", "node")),
                    ("leases lost", rate("kvrelay_leases_lost_total")),
                ),
            ),
        ),
    ),
    Row(
        "Does the record keep up?",
        (
            Panel(
                "Index lag",
                "The age of the oldest ownership change that a coordinator has not read.",
                "s",
                (("{{instance}}", "kvrelay_index_lag_seconds"),),
            ),
            Panel(
                "Redis",
                "1 while Redis answers a coordinator.",
                "short",
                (("{{instance}}", "kvrelay_redis_up"),),
            ),
            Panel(
                "Reloads",
                "Records of nodes that were read as a whole, after a gap or a restart.",
                "ops",
                (("{{instance}}", "rate(kvrelay_index_reloads_total[$__rate_interval])"),),
            ),
        ),
    ),
)


def dashboard() -> str:
    """Returns the whole file."""
    content = {
        "uid": "kvrelay",
        "title": "kvrelay",
        "tags": ["kvrelay"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "source",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                }
            ]
        },
        "panels": list(_panels()),
    }
    return json.dumps(content, indent=1) + "\n"


def _panels() -> Iterator[dict[str, Any]]:
    number = line = 0
    for row in ROWS:
        number += 1
        place = {"x": 0, "y": line, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": row.title, "gridPos": place, "panels": []}
        line, column = line + 1, 0
        for panel in row.panels:
            number += 1
            if column + panel.width > COLUMNS:
                line, column = line + HEIGHT, 0
            place = {"x": column, "y": line, "w": panel.width, "h": HEIGHT}
            yield _panel(number, panel, place)
            column += panel.width
        line += HEIGHT


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom = {
        "fillOpacity": 30 if panel.is_stacked else 5,
        "stacking": {"mode": "normal" if panel.is_stacked else "none"},
        "showPoints": "never",
    }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend}
            for i, (legend, query) in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    FILE.write_text(dashboard(), encoding="utf-8")
