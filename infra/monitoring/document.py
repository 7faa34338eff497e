"""Writes docs/metrics.md: every metric, by the process that tells it, and every alert.

`python -m infra.monitoring.document` writes the file from the tables; a test fails while it is not
what this module would write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from coordinator.http.scrapes import familiar_names as of_coordinator
from coordinator.metrics import table as coordinator_table
from node.metrics import familiar_names as of_node
from node.metrics import table as node_table
from protocol.telemetry.familiar import Names
from protocol.telemetry.metric import Metric

FILE = Path("docs/metrics.md")
ALERTS = Path(__file__).with_name("alerts.yml")


def alerts() -> list[dict[str, Any]]:
    """Returns the alert rules."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def document() -> str:
    """Returns the whole file."""
    lines = [
        "# Metrics and alerts",
        "",
        "This file is written by `python -m infra.monitoring.document`. A coordinator answers at "
        "`GET /metrics` of its HTTP port, a node at `GET /metrics` of its health port "
        "(`--health-port`), where `/live` and `/ready` are too. No key is asked for. Nodes answer "
        "without a coordinator, and while they load, compile or are stuck.",
        "",
        "Counters are those of one process, and begin at 0 with it; `rate` and `increase` take "
        "that into account, so sums over processes go on over restarts. Labels have few values: no "
        "request, prefix, tenant or pair of nodes is one.",
        "",
        "## Coordinators",
        "",
        "Every series has the label `model_name`. With `--workers`, a scrape gets the sums of all "
        "workers behind the port.",
        "",
        *_table(coordinator_table.METRICS),
        "",
        "## Nodes",
        "",
        "Every series has the labels `node` and `role`.",
        "",
        *_table(node_table.METRICS),
        "",
        "## Familiar names",
        "",
        "`--metric-names sglang,vllm` adds these, with the same values, so that existing "
        "dashboards and endpoint pickers work. Nothing has a familiar name that does not mean the "
        "same. "
        "`sglang` is the default; an empty value adds none.",
        "",
        "| name | metric of kvrelay | told by |",
        "| --- | --- | --- |",
        *_familiar(of_coordinator.NAMES, "coordinators"),
        *_familiar(of_node.NAMES, "nodes"),
        "",
        "## Alerts",
        "",
        "`infra/monitoring/alerts.yml` has them, for Prometheus' `rule_files`.",
        "",
        "| alert | severity | when | what to do |",
        "| --- | --- | --- | --- |",
        *(
            f"| `{rule['alert']}` | {rule['labels']['severity']} | "
            f"{rule['annotations']['summary']} | {rule['annotations']['description']} |"
            for rule in alerts()
        ),
    ]
    return "\n".join([*lines, ""])


def _table(metrics: Iterable[Metric]) -> Iterator[str]:
    yield "| metric | kind | labels | meaning |"
    yield "| --- | --- | --- | --- |"
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"


def _familiar(names: Names, who: str) -> Iterator[str]:
    for family in names.values():
        for name in family:
            yield f"| `{name.name}` | `{name.source.name}` | {who} |"


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
