"""Who finds whom in the rendered chart, and who may reach which port."""

from __future__ import annotations

import pytest

from coordinator.config import CoordinatorConfig
from node.config import NodeConfig
from tests.support.chart.rendering import (
    EVERYTHING,
    OURS,
    RELEASE,
    ROLES,
    VALUE_SETS,
    Object,
    environment,
    helm_program,
    labels_of,
    named,
    of_kind,
    pods,
    port_range,
    ports,
    ports_of_coordinator,
    ports_of_node,
    rendered,
    secret_names,
    settings_of,
)

pytestmark = [
    pytest.mark.verify,
    pytest.mark.skipif(helm_program() is None, reason="needs helm: make chart-tools"),
]
all_value_sets = pytest.mark.parametrize("values", ["", *VALUE_SETS])


def policy(objects: list[Object], component: str) -> dict[int, list[str] | None]:
    """Who may come in, by port: names of components, "others" for anything else; None: anybody."""
    spec = named(objects, "NetworkPolicy", f"{RELEASE}-{component}")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    allowed: dict[int, list[str] | None] = {}
    for rule in spec["ingress"]:
        peers = rule.get("from")
        told = None if peers is None else [_component(peer) for peer in peers]
        for port in [p for entry in rule["ports"] for p in port_range(entry)]:
            before = allowed.get(port, [])
            allowed[port] = None if told is None or before is None else [*before, *told]
    return allowed


def _component(peer: Object) -> str:
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    return str(labels.get("app.kubernetes.io/component", "others"))


def policies(values: str) -> dict[str, dict[int, list[str] | None]]:
    objects = list(rendered(values))
    components = [*OURS, "redis"] if named(objects, "Deployment", f"{RELEASE}-redis") else OURS
    return {component: policy(objects, component) for component in components}


@all_value_sets
def test_selectors_find_the_pods_of_one_component(values: str) -> None:
    objects = rendered(values)
    deployments = of_kind(objects, "Deployment")
    pod_labels = {
        one["metadata"]["name"]: labels_of(one["spec"]["template"]) for one in deployments
    }

    def found(selector: dict[str, str]) -> list[str]:
        return [n for n, labels in pod_labels.items() if selector.items() <= labels.items()]

    for one in deployments:
        selector = one["spec"]["selector"]["matchLabels"]
        assert found(selector) == [one["metadata"]["name"]]
    selecting = of_kind(objects, "PodDisruptionBudget", "PodMonitor", "InferencePool")
    for one in selecting:
        (name,) = found(one["spec"]["selector"]["matchLabels"])
        if one["kind"] != "InferencePool":
            assert name == one["metadata"]["name"]
    for service in of_kind(objects, "Service"):
        (name,) = found(service["spec"]["selector"])
        pod = next(d for d in deployments if d["metadata"]["name"] == name)["spec"]["template"]
        for port in service["spec"]["ports"]:
            assert ports(pod["spec"])[port["targetPort"]] == port["port"]
    assert {f"{RELEASE}-{c}" for c in OURS} <= {
        one["metadata"]["name"] for one in of_kind(objects, "PodDisruptionBudget")
    }


@pytest.mark.parametrize("values", ["", "tensor-parallel-values.yaml", EVERYTHING])
def test_policies_name_the_ports_of_the_processes_and_no_others(values: str) -> None:
    found, allowed = pods(rendered(values)), policies(values)
    coordinator = settings_of(found["coordinator"])
    assert isinstance(coordinator, CoordinatorConfig)
    assert allowed["coordinator"].keys() == ports_of_coordinator(coordinator)
    for port in ports_of_coordinator(coordinator) - {coordinator.port}:
        assert set(allowed["coordinator"][port] or ()) == set(OURS)
    for role in ROLES:
        config = settings_of(found[role])
        assert isinstance(config, NodeConfig)
        nccl = nccl_ports(found[role])
        assert allowed[role].keys() == ports_of_node(config) | set(nccl)
        assert set(allowed[role][config.control_port] or ()) == set(OURS)
        for port in range(config.data_port, config.data_port + config.tensor_parallel_size):
            assert set(allowed[role][port] or ()) == set(ROLES)
        assert all(set(allowed[role][port] or ()) == set(ROLES) for port in nccl)
    ((port, peers),) = allowed["redis"].items()
    assert set(peers or ()) == set(OURS) and ports(found["redis"]) == {"redis": port}


def nccl_ports(pod: Object) -> range:
    """The ports that a pod's processes get when they name none."""
    sysctls = pod["securityContext"].get("sysctls", ())
    for one in sysctls:
        assert one["name"] == "net.ipv4.ip_local_port_range"
        first, last = map(int, one["value"].split())
        return range(first, last + 1)
    return range(0)


def test_clients_and_scrapers_are_those_that_are_named() -> None:
    open_to_all, named_ones = policies(""), policies(EVERYTHING)
    config = settings_of(pods(rendered(EVERYTHING))["coordinator"])
    assert isinstance(config, CoordinatorConfig)
    assert open_to_all["coordinator"][30000] is None and open_to_all["decode"][30080] is None
    assert set(named_ones["coordinator"][config.port] or ()) == {"others", "test"}
    assert set(named_ones["decode"][9300] or ()) == {*ROLES, "others"}


@all_value_sets
def test_every_secret_is_made_here_or_named_by_a_value(values: str) -> None:
    objects = rendered(values)
    made = {one["metadata"]["name"] for one in of_kind(objects, "Secret")}
    outside = {"kvrelay-trust", "kvrelay-api", "kvrelay-redis", "hub"}
    used = {name for pod in pods(objects).values() for name in secret_names(pod)}
    assert used <= made | outside
    assert bool(made) == (f"{RELEASE}-trust" in used), "none is made that nobody uses"
    for secret in of_kind(objects, "Secret"):
        assert secret["stringData"].keys() == {"cluster-secret", "redis-password"}
        assert all(len(text) >= 32 for text in secret["stringData"].values())


def test_an_external_redis_is_reached_by_its_secret_alone() -> None:
    objects = rendered("external-redis-values.yaml")
    for component in OURS:
        assert "kvrelay-redis" in environment(pods(objects)[component])["KVRELAY_REDIS_URL"]
    assert "redis" not in pods(objects) and not of_kind(objects, "NetworkPolicy", "Secret")
