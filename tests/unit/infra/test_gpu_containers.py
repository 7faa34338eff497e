"""The compose files for GPUs, each on top of the one for CPUs."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from node.config import NodeConfig

ROOT = Path(__file__).resolve().parents[3]
BASE = ROOT / "docker-compose.yml"
RANKS = {"gpu.yml": 1, "gpu-tensor-parallel.yml": 2}
NODES = ("prefill", "decode")


def merged(below: Any, above: Any) -> Any:
    """What compose makes of a setting that two files have: mappings grow together, others are
    replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {
        key: merged(below[key], value) if key in below else value for key, value in above.items()
    }


def nodes_of(name: str) -> dict[str, Mapping[str, Any]]:
    """The services of the nodes, as both files together and `extends` make them."""
    base = yaml.safe_load(BASE.read_text())["services"]
    own = yaml.safe_load((ROOT / "infra/docker" / name).read_text())["services"]
    services = {}
    for service, settings in own.items():
        extended = settings.get("extends", {"file": BASE.name, "service": service})
        assert ROOT / extended["file"] == BASE
        services[service] = merged(base[extended["service"]], settings)
    return services


@pytest.mark.parametrize("name", RANKS)
def test_every_node_has_gpus_that_no_other_has_and_shared_memory(name: str) -> None:
    services = nodes_of(name)
    assert services.keys() >= set(NODES)
    taken: list[str] = []
    for service in services.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
        assert "count" not in device, "a count gives every container the first GPUs"
        assert len(device["device_ids"]) == RANKS[name]
        taken += device["device_ids"]
        assert service["shm_size"].endswith("gb") and service["ulimits"]["memlock"] == -1
        assert service["command"][0] in NODES and "kvrelay" in service["image"]
        assert service["environment"]["KVRELAY_REDIS_URL"], (
            "what the file for CPUs says still holds"
        )
        assert service["environment"]["KVRELAY_DEVICE"] == "cuda"
        size = int(service["environment"].get("KVRELAY_TENSOR_PARALLEL_SIZE", "1"))
        assert size == RANKS[name]
    assert taken == [str(number) for number in range(len(taken))], "each once, from the first on"


@pytest.mark.parametrize("name", RANKS)
def test_every_variable_is_a_setting_of_a_node(name: str) -> None:
    settings = {f"KVRELAY_{field.name.upper()}" for field in dataclasses.fields(NodeConfig)}
    own = yaml.safe_load((ROOT / "infra/docker" / name).read_text())["services"]
    told = {variable for service in own.values() for variable in service.get("environment", ())}
    assert told and told <= settings


@pytest.mark.parametrize("name", RANKS)
def test_compose_takes_the_files(name: str) -> None:
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not installed")
    words = [docker, "compose", "-f", str(BASE), "-f", f"infra/docker/{name}"]
    checked = subprocess.run(
        [*words, "--profile", "*", "config", "--quiet"], cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
