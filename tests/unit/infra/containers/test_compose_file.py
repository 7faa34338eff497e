"""docker-compose.yml, the proxy's configuration and the image agree with what processes do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.config import CoordinatorConfig
from node.config import NodeConfig
from tests.support.processes.ready_proxies import haproxy_config, haproxy_program

ROOT = Path(__file__).resolve().parents[4]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())[
    "services"
]
PROXY = (ROOT / "infra/docker/haproxy.cfg").read_text()
DOCKERFILE = (ROOT / "infra/Dockerfile").read_text()
OURS = {"trust", "redis", "coordinator", "proxy", "prefill", "decode"}


def seconds(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(s|m|h)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_container_can_do_no_more_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name in ("redis", "proxy"):
        assert service["user"] not in ("", "root", "0")
    assert "USER 10001" in DOCKERFILE


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_nodes_are_asked_at_their_own_port_and_know_no_tokens(role: str) -> None:
    service = SERVICES[role]
    port = service["environment"]["KVRELAY_HEALTH_PORT"]
    assert service["healthcheck"]["test"][-1] == f"http://127.0.0.1:{port}/ready"
    assert seconds(service["healthcheck"]["start_period"]) >= 3600
    assert not service["environment"].keys() & {"KVRELAY_ADMIN_TOKEN", "KVRELAY_API_KEY"}


def test_the_proxy_finds_two_coordinators_and_as_many_as_are_added() -> None:
    assert SERVICES["coordinator"]["deploy"]["replicas"] == 2
    assert "ports" not in SERVICES["coordinator"], "two cannot have the same port of the host"
    port = CoordinatorConfig().port
    assert f" coordinator:{port} " in PROXY and f"bind :{port}" in PROXY
    assert "option httpchk GET /ready" in PROXY and "server-template coordinator 16" in PROXY


def test_the_proxy_gives_up_after_the_coordinators_and_repeats_no_request() -> None:
    for side in ("client", "server"):
        (told,) = re.findall(rf"timeout {side} (\w+)", PROXY)
        assert seconds(told) > CoordinatorConfig().request_timeout_s
    assert re.findall(r"retry-on (.*)", PROXY) == ["conn-failure"]


@pytest.mark.parametrize("name", ["coordinator", "prefill", "decode"])
def test_a_process_has_the_time_to_drain(name: str) -> None:
    service = SERVICES[name]
    default = service["environment"]["KVRELAY_DRAIN_TIMEOUT_S"].partition(":-")[2].rstrip("}")
    assert seconds(service["stop_grace_period"]) >= int(default) + 10
    assert int(default) == CoordinatorConfig().drain_timeout_s == NodeConfig().drain_timeout_s


@pytest.mark.skipif(haproxy_program() is None, reason="needs Debian's package haproxy")
def test_haproxy_takes_its_configuration(tmp_path: Path) -> None:
    program = haproxy_program()
    assert program is not None
    for name, text in {"shipped": PROXY, "tests": haproxy_config(30000, [30001, 30002])}.items():
        file = tmp_path / name
        file.write_text(text)
        checked = subprocess.run([program, "-c", "-f", str(file)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


def test_monitoring_comes_with_a_profile_alone() -> None:
    others = {name for name, service in SERVICES.items() if service.get("profiles")}
    assert others == {"prometheus", "grafana"} == SERVICES.keys() - OURS
