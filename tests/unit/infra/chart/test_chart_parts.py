"""The parts of the chart that are off by default: scaling, monitoring, gateways, the test pod."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.config import CoordinatorConfig
from infra.monitoring.document import alerts
from tests.support.chart.rendering import (
    CHART,
    EVERYTHING,
    NAMESPACE,
    OURS,
    RELEASE,
    container,
    environment,
    helm,
    helm_program,
    labels_of,
    named,
    of_kind,
    pods,
    ports,
    rendered,
)

pytestmark = [
    pytest.mark.verify,
    pytest.mark.skipif(helm_program() is None, reason="needs helm: make chart-tools"),
]


def test_scaling_asks_what_nodes_tell_and_goes_down_slowly() -> None:
    objects = rendered(EVERYTHING)
    asked = {}
    for one in of_kind(objects, "ScaledObject"):
        (trigger,) = one["spec"]["triggers"]
        asked[one["metadata"]["name"]] = trigger["metadata"]["query"]
        advanced = one["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
        assert advanced["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 300
        assert f'namespace="{NAMESPACE}"' in trigger["metadata"]["query"]
    assert "kvrelay_queued_work_seconds" in asked[f"{RELEASE}-prefill"]
    assert "kvrelay_page_usage_ratio" in asked[f"{RELEASE}-decode"]
    (hpa,) = of_kind(objects, "HorizontalPodAutoscaler")
    assert hpa["spec"]["scaleTargetRef"]["name"] == f"{RELEASE}-coordinator"
    scaled = [f"{RELEASE}-{component}" for component in OURS]
    assert all("replicas" not in named(objects, "Deployment", name)["spec"] for name in scaled)


def test_monitors_scrape_metrics_rules_and_dashboard_are_ours() -> None:
    objects = rendered(EVERYTHING)
    found = pods(objects)
    for monitor in of_kind(objects, "PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        component = labels_of(monitor)["app.kubernetes.io/component"]
        assert endpoint["path"] == "/metrics" and endpoint["port"] in ports(found[component])
        assert labels_of(monitor)["release"] == "kube-prometheus-stack"
    (rules,) = of_kind(objects, "PrometheusRule")
    assert [rule for group in rules["spec"]["groups"] for rule in group["rules"]] == alerts()
    (dashboard,) = of_kind(objects, "ConfigMap")
    assert json.loads(dashboard["data"]["kvrelay.json"])["panels"]


def test_a_gateway_finds_coordinators() -> None:
    objects = rendered(EVERYTHING)
    (pool,) = of_kind(objects, "InferencePool")
    template = named(objects, "Deployment", f"{RELEASE}-coordinator")["spec"]["template"]
    assert labels_of(template)["llm-d.ai/engine-type"] == "sglang"
    assert [port["number"] for port in pool["spec"]["targetPorts"]] == [
        ports(template["spec"])["http"]
    ]
    assert "sglang" in CoordinatorConfig().metric_names


def test_an_ingress_does_not_hold_streams_back() -> None:
    (ingress,) = of_kind(rendered(EVERYTHING), "Ingress")
    told = ingress["metadata"]["annotations"]
    assert told["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    read_s = int(told["nginx.ingress.kubernetes.io/proxy-read-timeout"])
    assert read_s > CoordinatorConfig().request_timeout_s


def test_helm_test_sends_a_prompt_to_the_service() -> None:
    for values in ("", EVERYTHING):
        objects = rendered(values)
        (pod,) = of_kind(objects, "Pod")
        assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
        service = named(objects, "Service", RELEASE)
        port = service["spec"]["ports"][0]["port"]
        assert environment(pod["spec"])["KVRELAY_URL"] == f"http://{RELEASE}:{port}"
        words = " ".join(container(pod["spec"])["args"])
        assert "generate" in words and ("api-keys" in words) == bool(values)


@pytest.mark.parametrize("setting", ["redis.bundled=false", "prefill.gpu=1", "ports.http=80"])
def test_helm_refuses_values_that_cannot_work(setting: str) -> None:
    done = helm("template", RELEASE, str(CHART), "--set", setting)
    assert done.returncode != 0 and "schema" in done.stderr


def test_the_packaged_chart_has_alerts_and_dashboard(tmp_path: Path) -> None:
    assert helm("package", str(CHART), "--destination", str(tmp_path)).returncode == 0
    (archive,) = tmp_path.glob("*.tgz")
    shown: Any = helm("template", RELEASE, str(archive), "--set", "monitoring.rules=true")
    assert shown.returncode == 0 and "KvrelayNoNode" in shown.stdout
