"""The chart's files without helm: values, schema, flags, and what it takes from elsewhere."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from coordinator.config import CoordinatorConfig
from infra.cli import ClientConfig
from infra.monitoring import dashboard, document
from node.config import NodeConfig
from tests.support.chart.rendering import CHART, ROOT, VALUE_SETS

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
VARIABLE = re.compile(r"\bKVRELAY_[A-Z_]+")
OTHER_VARIABLES = {"KVRELAY_EMBEDDED_MODEL"}


def merged(below: Any, above: Any) -> Any:
    """What helm makes of values: mappings grow together, others are replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: merged(below.get(key), value) for key, value in above.items()}


def problems(values: Any) -> list[str]:
    validator = jsonschema.Draft7Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(merged(DEFAULTS, values))]


def variables_of_settings() -> set[str]:
    configs = (CoordinatorConfig, NodeConfig, ClientConfig)
    fields = {field.name for config in configs for field in dataclasses.fields(config)}
    return {f"KVRELAY_{name.upper()}" for name in fields}


def test_the_page_builds_the_image_that_the_chart_names() -> None:
    tags = re.findall(r"registry\.example/kvrelay:(\S+)", (ROOT / "docs/kubernetes.md").read_text())
    assert set(tags) == {yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]}


def test_the_schema_takes_the_defaults() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert problems({}) == []


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_schema_takes_the_value_set(name: str) -> None:
    assert problems(yaml.safe_load(VALUE_SETS[name].read_text())) == []


@pytest.mark.parametrize(
    "values",
    [
        {"prefil": {}},
        {"prefill": {"gpu": 1}},
        {"node": {"gpus": -1}},
        {"node": {"gpus": "1"}},
        {"node": {"sharedMemory": "8GB"}},
        {"node": {"startupSeconds": 10}},
        {"decode": {"args": ["--data-port=5000"]}},
        {"decode": {"args": ["--tp", "2"]}},
        {"coordinator": {"args": ["--cluster-secret", "in-the-clear"]}},
        {"coordinator": {"replicas": 0}},
        {"coordinator": {"drainSeconds": "2m"}},
        {"ports": {"http": 80}},
        {"ports": {"control": 70000}},
        {"redis": {"bundled": False}},
        {"model": {"volume": "pvc"}},
        {"model": {"volume": "hostPath"}},
        {"model": {"volume": "hostPath", "hostPath": "srv/models"}},
        {"ingress": {"enabled": True}},
        {"inferencePool": {"enabled": True}},
        {"keda": {"prometheus": "prometheus:9090"}},
        {"decode": {"autoscaling": {"target": "80%"}}},
    ],
    ids=str,
)
def test_the_schema_refuses(values: dict[str, Any]) -> None:
    assert problems(values)


def test_values_name_no_pinned_flag_that_does_not_exist() -> None:
    pattern = SCHEMA["definitions"]["node"]["properties"]["args"]["items"]["not"]["pattern"]
    pinned = pattern.removeprefix("^--(").removesuffix(")(=|$)").split("|")
    options = [f for c in (CoordinatorConfig, NodeConfig) for f in dataclasses.fields(c)]
    flags = {name for f in options for name in (f.name, *f.metadata["aliases"])}
    assert {name.replace("-", "_") for name in pinned} <= {f.replace("-", "_") for f in flags}


@pytest.mark.parametrize(
    "path", [*sorted((CHART / "templates").rglob("*.*")), ROOT / "docker-compose.yml"], ids=str
)
def test_every_variable_is_a_setting(path: Path) -> None:
    told = VARIABLE.findall(path.read_text())
    if path.name == "docker-compose.yml":
        # What the person who starts it sets is not passed on under the same name.
        told = [name for name in told if f"      {name}:" in path.read_text()]
    assert set(told) <= variables_of_settings() | OTHER_VARIABLES


def test_alerts_and_dashboard_are_those_of_the_repository() -> None:
    assert (CHART / "files/alerts.yml").resolve() == document.ALERTS.resolve()
    assert (CHART / "files/dashboard.json").resolve() == (ROOT / dashboard.FILE).resolve()


def test_the_chart_is_of_this_version() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert version is not None and chart["appVersion"] == version[1]
