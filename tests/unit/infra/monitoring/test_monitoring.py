"""Dashboard, alerts and docs name only metrics that processes tell."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.metrics import table as coordinator_table
from infra.monitoring import dashboard, document
from infra.monitoring.document import alerts
from node.metrics import table as node_table
from protocol.telemetry.metric import Metric

ROOT = Path(__file__).resolve().parents[4]
METRICS = {m.name: m for m in (*coordinator_table.METRICS, *node_table.METRICS)}
NAME = re.compile(r"\bkvrelay_[a-z0-9_]+")
SELECTOR = re.compile(r"(kvrelay_[a-z0-9_]+)\{([^}]*)\}")
COMMON = {"model_name", "node", "role", "job", "instance", "le"}


def metric_of(name: str) -> Metric | None:
    """Returns the metric that a series belongs to; None if there is none."""
    if name in METRICS:
        return METRICS[name]
    stem, _, suffix = name.rpartition("_")
    metric = METRICS.get(stem)
    is_part = metric is not None and metric.kind == "histogram"
    return metric if is_part and suffix in ("bucket", "sum", "count") else None


def queries() -> list[str]:
    panels = json.loads((ROOT / dashboard.FILE).read_text(encoding="utf-8"))["panels"]
    charts = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return charts + [rule["expr"] for rule in alerts()]


@pytest.mark.parametrize("query", queries())
def test_a_query_names_only_what_is_told(query: str) -> None:
    names = NAME.findall(query)
    assert names
    for name in names:
        metric = metric_of(name)
        assert metric is not None, name
        assert name == metric.name or metric.kind == "histogram", name
    for name, selector in SELECTOR.findall(query):
        metric = metric_of(name)
        assert metric is not None
        used = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector))
        assert used <= COMMON | set(metric.labels), selector


def test_every_metric_is_defined_once_and_well_named() -> None:
    names = [m.name for m in (*coordinator_table.METRICS, *node_table.METRICS)]
    assert len(names) == len(set(names))
    for metric in METRICS.values():
        assert metric.name.startswith("kvrelay_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert list(metric.bounds) == sorted(set(metric.bounds)), metric.name
        assert bool(metric.bounds) == (metric.kind == "histogram"), metric.name
        assert metric.help.endswith("."), metric.name


def test_cache_hits_are_told_apart() -> None:
    """Half of the buckets below a second, the first one at a millisecond, the last beyond a
    minute."""
    bounds = coordinator_table.FIRST_TOKEN.bounds
    assert bounds[0] == 0.001 and bounds[-1] >= 60
    assert sum(bound < 0.1 for bound in bounds) >= 8


def test_committed_files_are_what_is_written() -> None:
    """`python -m infra.monitoring.document` and `… .dashboard` write them."""
    assert (ROOT / document.FILE).read_text(encoding="utf-8") == document.document()
    assert (ROOT / dashboard.FILE).read_text(encoding="utf-8") == dashboard.dashboard()


def test_every_alert_says_what_to_do() -> None:
    for rule in alerts():
        assert rule["alert"].startswith("Kvrelay")
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.verify
def test_promtool_accepts_the_rules() -> None:
    result = promtool("check", "rules", str(document.ALERTS))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.verify
@pytest.mark.parametrize(
    "case", yaml.safe_load((Path(__file__).with_name("alert_cases.yml")).read_text())
)
def test_alerts_fire_when_they_should(case: dict[str, Any], tmp_path: Path) -> None:
    """Each case has series, and the alerts that fire after ten minutes of them."""
    rules = {
        "rule_files": [str(document.ALERTS)],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": series, "values": values}
                    for series, values in case["series"].items()
                ],
                "alert_rule_test": [
                    {"eval_time": "12m", "alertname": name, "exp_alerts": [expected(name, labels)]}
                    for name, labels in case["fires"].items()
                ]
                + [
                    {"eval_time": "12m", "alertname": name, "exp_alerts": []}
                    for name in case.get("silent", ())
                ],
            }
        ],
    }
    file = tmp_path / "cases.yml"
    file.write_text(yaml.safe_dump(rules))
    result = promtool("test", "rules", str(file))
    assert result.returncode == 0, result.stdout + result.stderr


def expected(name: str, labels: dict[str, str]) -> dict[str, Any]:
    rule = next(rule for rule in alerts() if rule["alert"] == name)
    return {"exp_labels": {**rule["labels"], **labels}, "exp_annotations": rule["annotations"]}
