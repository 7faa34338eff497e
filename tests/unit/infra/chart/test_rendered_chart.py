"""What helm makes of the chart: objects that Kubernetes takes, and pods that are consistent."""

from __future__ import annotations

import kubernetes_validate
import pytest

from coordinator.config import CoordinatorConfig
from node.config import NodeConfig
from tests.support.chart.rendering import (
    CHART,
    OURS,
    RELEASE,
    ROLES,
    VALUE_SETS,
    Object,
    container,
    environment,
    helm,
    helm_program,
    labels_of,
    of_kind,
    pods,
    ports,
    ports_of_coordinator,
    ports_of_node,
    rendered,
    settings_of,
)

pytestmark = [
    pytest.mark.verify,
    pytest.mark.skipif(helm_program() is None, reason="needs helm: make chart-tools"),
]
KUBERNETES = ("1.27", "1.30", "1.36")
OTHER_KINDS = {"PodMonitor", "PrometheusRule", "ScaledObject", "InferencePool"}
"""Kinds of other projects, whose schemas are in no package."""
all_value_sets = pytest.mark.parametrize("values", ["", *VALUE_SETS])


@all_value_sets
def test_helm_finds_nothing_wrong(values: str) -> None:
    words = ["--values", str(VALUE_SETS[values])] if values else []
    linted = helm("lint", "--strict", str(CHART), *words)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("version", KUBERNETES)
@all_value_sets
def test_kubernetes_takes_every_object(values: str, version: str) -> None:
    objects = rendered(values)
    assert len(of_kind(objects, "Deployment")) >= 3
    for one in objects:
        if one["kind"] not in OTHER_KINDS:
            kubernetes_validate.validate(one, version, strict=True)


@all_value_sets
def test_names_are_unique_and_every_object_says_whose_it_is(values: str) -> None:
    objects = rendered(values)
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names)
    assert all(labels_of(one)["app.kubernetes.io/instance"] == RELEASE for one in objects)


@all_value_sets
def test_processes_take_their_settings(values: str) -> None:
    for component, pod in pods(rendered(values)).items():
        if component not in OURS:
            continue
        config = settings_of(pod)
        expected = (
            ports_of_coordinator(config)
            if isinstance(config, CoordinatorConfig)
            else ports_of_node(config)
        )
        assert set(ports(pod).values()) == expected
        assert config.host == "0.0.0.0"
        assert "status.podIP" in environment(pod)["KVRELAY_ADVERTISE_HOST"]
        assert config.cluster_secret_file in mounted_files(pod), (
            "the secret is a file that is there"
        )
        if isinstance(config, NodeConfig):
            assert "metadata.name" in environment(pod)["KVRELAY_NAME"]


def mounted_files(pod: Object) -> set[str]:
    """The paths of all items of Secrets that a pod mounts."""
    where = {mount["name"]: mount["mountPath"] for mount in container(pod)["volumeMounts"]}
    secrets = [volume for volume in pod["volumes"] if "secret" in volume]
    return {
        f"{where[volume['name']]}/{item['path']}"
        for volume in secrets
        for item in volume["secret"]["items"]
    }


@all_value_sets
def test_every_probe_asks_the_container_itself(values: str) -> None:
    for component, pod in pods(rendered(values)).items():
        if component == "test":
            continue
        one = container(pod)
        probes = {kind: one[kind] for kind in one if kind.endswith("Probe")}
        assert {"readinessProbe", "livenessProbe"} <= probes.keys()
        for probe in probes.values():
            asked = probe.get("httpGet") or probe["tcpSocket"]
            assert asked["port"] in ports(pod) and "host" not in asked
        if component in OURS:
            port = "http" if component == "coordinator" else "health"
            assert {probe["httpGet"]["port"] for probe in probes.values()} == {port}
            assert probes["startupProbe"]["httpGet"]["path"] == "/ready"
            patience_s = [
                p["periodSeconds"] * p["failureThreshold"]
                for p in probes.values()
                if "failureThreshold" in p
            ]
            assert max(patience_s) >= 3600, "weights may load for an hour"
        if component in ROLES:
            assert probes["readinessProbe"]["httpGet"]["path"] == "/ready"
            assert probes["livenessProbe"]["httpGet"]["path"] == "/live"
            config = settings_of(pod)
            assert isinstance(config, NodeConfig)
            live = probes["livenessProbe"]
            assert live["periodSeconds"] * live["failureThreshold"] > config.stall_s, (
                "the node gives up its lease before it is restarted"
            )


@all_value_sets
def test_the_time_to_stop_is_enough(values: str) -> None:
    found = pods(rendered(values))
    coordinator = found["coordinator"]
    config = settings_of(coordinator)
    assert isinstance(config, CoordinatorConfig)
    _, pre_stop_s = container(coordinator)["lifecycle"]["preStop"]["exec"]["command"]
    needed_s = int(pre_stop_s) + config.drain_timeout_s
    assert coordinator["terminationGracePeriodSeconds"] >= needed_s + 10
    for role in ROLES:
        needed_s = settings_of(found[role]).drain_timeout_s
        assert "lifecycle" not in container(found[role]), "a node drains by itself"
        assert found[role]["terminationGracePeriodSeconds"] >= needed_s + 15


@all_value_sets
def test_nobody_is_root_or_writes_but_where_it_is_planned(values: str) -> None:
    for component, pod in pods(rendered(values)).items():
        one, security = container(pod), pod["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] > 0
        assert security["runAsUser"] == (999 if component == "redis" else 10001)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        mounts = {mount["name"]: mount for mount in one["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        writable = {m["mountPath"] for m in mounts.values() if not m.get("readOnly")}
        if component in OURS:
            assert (
                {"/tmp", "/var/cache/kvrelay"}
                <= writable
                <= {
                    "/tmp",
                    "/var/cache/kvrelay",
                    "/dev/shm",
                }
            )
        for volume in pod["volumes"]:
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"], "everything has a bound"


@all_value_sets
def test_limits_and_gpus(values: str) -> None:
    for component, pod in pods(rendered(values)).items():
        resources = container(pod)["resources"]
        assert resources["requests"]["cpu"] and resources["limits"]["memory"], component
        if component not in ROLES:
            continue
        config = settings_of(pod)
        assert isinstance(config, NodeConfig)
        gpus = resources["limits"].get("nvidia.com/gpu", 0)
        assert resources["requests"].get("nvidia.com/gpu", 0) == gpus
        assert config.device == ("cuda" if gpus else "cpu")
        assert config.tensor_parallel_size == max(1, gpus)
