"""The Helm chart, rendered by helm into the objects that Kubernetes would get."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from coordinator.config import CoordinatorConfig
from infra.cli import read_arguments
from node.config import NodeConfig
from protocol.config import resolve

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "infra/chart/kvrelay"
VALUE_SETS = {path.name: path for path in sorted((CHART / "ci").glob("*.yaml"))}
TOOLS = ROOT / ".chart-tools"
RELEASE, NAMESPACE = "demo", "serving"
Object = dict[str, Any]
ROLES = ("prefill", "decode")
OURS = ("coordinator", *ROLES)
EVERYTHING = "everything-values.yaml"


def helm_program() -> str | None:
    """The path of helm, that of `make chart-tools` first; None if there is none."""
    return shutil.which("helm", path=f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}")


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    program = helm_program()
    assert program is not None
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=60)


@lru_cache
def rendered(values: str = "", settings: tuple[str, ...] = ()) -> Sequence[Object]:
    """All objects, by a value set (""; the defaults) and by settings as `--set` takes them."""
    words = ["template", RELEASE, str(CHART), "--namespace", NAMESPACE]
    words += ["--values", str(VALUE_SETS[values])] if values else []
    for setting in settings:
        words += ["--set", setting]
    done = helm(*words)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    return [one for one in objects if one["kind"] in kinds]


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    (found,) = [one for one in of_kind(objects, kind) if one["metadata"]["name"] == name]
    return found


def pods(objects: Sequence[Object]) -> dict[str, Object]:
    """The specifications of all pods, by component."""
    templates = [one["spec"]["template"] for one in of_kind(objects, "Deployment")]
    everything = [*templates, *of_kind(objects, "Pod")]
    return {labels_of(one)["app.kubernetes.io/component"]: one["spec"] for one in everything}


def labels_of(pod: Object) -> dict[str, str]:
    return dict(pod["metadata"]["labels"])


def container(pod: Object) -> Object:
    """The only container of a pod."""
    (one,) = pod["containers"]
    return dict(one)


def environment(pod: Object) -> dict[str, str]:
    """The variables of a pod's container; of one that comes from elsewhere, where from."""
    return {
        one["name"]: str(one.get("value", one.get("valueFrom"))) for one in container(pod)["env"]
    }


def ports(pod: Object) -> dict[str, int]:
    return {one["name"]: one["containerPort"] for one in container(pod).get("ports", ())}


def port_range(port: Object) -> range:
    """The ports of one entry of a NetworkPolicy."""
    return range(port["port"], port.get("endPort", port["port"]) + 1)


def secret_names(value: Any) -> Iterator[str]:
    """The names of all Secrets that a part of an object refers to."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "secretKeyRef":
                yield inner["name"]
            elif key == "secret" and "secretName" in inner:
                yield inner["secretName"]
            yield from secret_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from secret_names(inner)


def settings_of(pod: Object) -> CoordinatorConfig | NodeConfig:
    """The settings that the container's process would have. Raises for what it would refuse."""
    _, flags = read_arguments(container(pod)["args"])
    config = CoordinatorConfig if container(pod)["args"][0] == "coordinator" else NodeConfig
    told = environment(pod)
    if told["KVRELAY_REDIS_URL"].startswith("{"):
        told["KVRELAY_REDIS_URL"] = "redis://from-a-secret"
    return resolve(config, flags, told)


def ports_of_node(config: NodeConfig) -> set[int]:
    data = range(config.data_port, config.data_port + config.tensor_parallel_size)
    return {config.control_port, config.health_port, *data}


def ports_of_coordinator(config: CoordinatorConfig) -> set[int]:
    control = range(config.control_port, config.control_port + config.workers)
    return {config.port, *control}
