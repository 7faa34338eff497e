"""docker-compose.yml as it is, on a real engine: one container of each kind is killed under load.

It needs a Docker engine and images that are there: `docker compose build`, and those that the
variables KVRELAY_REDIS_IMAGE and KVRELAY_HAPROXY_IMAGE name, if not the usual ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.ports import free_port
from kvrelay.client import Client

ROOT = Path(__file__).resolve().parents[3]
PROJECT = "kvrelay-drill"
SCALE = {"prefill": 3, "decode": 3, "coordinator": 2}
NUM_STREAMS = 20
NUM_TOKENS = 120
DEADLINE_S = 240.0
QUIET_S = 6.0
"""How long streams go on between two faults."""
DETERMINISTIC = """
services:
  prefill: {environment: {KVRELAY_DETERMINISTIC: "true"}}
  decode: {environment: {KVRELAY_DETERMINISTIC: "true"}}
"""
"""So that an answer that goes on elsewhere has the same tokens, whatever is computed beside it."""


def has_engine() -> bool:
    docker = shutil.which("docker")
    if docker is None:
        return False
    asked = [
        [docker, "info"],
        [docker, "compose", "version"],
        [docker, "image", "inspect", image()],
    ]
    return all(subprocess.run(words, capture_output=True).returncode == 0 for words in asked)


def image() -> str:
    return os.environ.get("KVRELAY_IMAGE", "kvrelay")


pytestmark = [
    pytest.mark.verify,
    pytest.mark.skipif(not has_engine(), reason="needs a Docker engine and the image kvrelay"),
]


class Compose:
    """A cluster of containers."""

    def __init__(self, directory: Path) -> None:
        self._override = directory / "deterministic.yml"
        self._override.write_text(DETERMINISTIC)
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def run(self, *words: str) -> str:
        files = ["-f", str(ROOT / "docker-compose.yml"), "-f", str(self._override)]
        done = subprocess.run(
            ["docker", "compose", "-p", PROJECT, *files, *words],
            cwd=ROOT,
            env={**os.environ, "KVRELAY_PORT": str(self._port)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def containers(self, service: str) -> dict[str, dict[str, Any]]:
        """What the engine says of the containers of a service, by name."""
        ids = self.run("ps", "--all", "--quiet", service).split()
        told = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True)
        return {one["Name"].lstrip("/"): one for one in json.loads(told.stdout)}

    def node_names(self) -> set[str]:
        with Client(self.url) as client:
            return {node["name"] for node in client.nodes()}


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    compose = Compose(tmp_path_factory.mktemp("compose"))
    try:
        compose.run("up", "--detach", "--no-build", "--wait", *scale_words())
        yield compose
    finally:
        compose.run("down", "--volumes", "--timeout", "3")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S:g} s"
        time.sleep(0.2)


def expected_nodes() -> set[str]:
    return {
        f"{PROJECT}-{role}-{i + 1}" for role in ("prefill", "decode") for i in range(SCALE[role])
    }


def test_nodes_have_the_names_of_their_containers(compose: Compose) -> None:
    assert compose.node_names() == expected_nodes()


def test_nobody_is_root_and_the_root_is_read_only(compose: Compose) -> None:
    for service in (*SCALE, "redis", "proxy"):
        for name, container in compose.containers(service).items():
            host = container["HostConfig"]
            assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"], name
            uid = subprocess.run(
                ["docker", "exec", name, "id", "-u"], capture_output=True, text=True
            )
            assert int(uid.stdout) > 0, name


def test_one_of_each_is_killed_and_no_stream_fails(compose: Compose) -> None:
    """Clients see no error and no other token when a prefill node, a decode node, a coordinator
    and Redis die, one after the other, and come back."""
    prompts = [f"<|user|>Tell me story number {who}.<|end|>" for who in range(NUM_STREAMS)]
    params = {"max_new_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    with Client(compose.url) as client:
        expected = [one.output_ids for one in client.batch(prompts, **params)]
    is_over = threading.Event()

    def stream_again_and_again(who: int) -> int:
        num_ended = 0
        with Client(compose.url) as client:
            while not is_over.is_set():
                *_, last = client.stream(prompts[who], **params)
                assert last.output_ids == expected[who]
                num_ended += 1
        return num_ended

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        streams = [pool.submit(stream_again_and_again, who) for who in range(NUM_STREAMS)]
        try:
            for service in ("prefill", "decode", "coordinator", "redis"):
                time.sleep(QUIET_S)
                name = f"{PROJECT}-{service}-1"
                subprocess.run(["docker", "kill", name], check=True, capture_output=True)
                time.sleep(QUIET_S)
                compose.run("up", "--detach", "--no-build", "--no-recreate", *scale_words())
            wait_until(lambda: compose.node_names() == expected_nodes(), "the killed are back")
        finally:
            is_over.set()
        ended = [stream.result() for stream in streams]
    assert min(ended) > 0
    print(f"{sum(ended)} streams ended, none failed")


def scale_words() -> list[str]:
    return [word for service, n in SCALE.items() for word in ("--scale", f"{service}={n}")]
