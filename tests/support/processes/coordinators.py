"""Two coordinators of one cluster, and how their clients see them."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from transformers import PreTrainedModel

from infra.ports import free_port
from kvrelay.client import Client
from kvrelay.errors import ClientError
from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import (
    ALWAYS_DISAGGREGATE,
    Cluster,
    body_of,
    http_client,
    wait_until,
)

NUM_STREAMS = 20
NUM_TOKENS = 24


class Coordinator:
    """One coordinator, and how a client sees it."""

    def __init__(self, cluster: Cluster, model_path: Path, name: str, port: int = 0) -> None:
        self.port = port = port or free_port()
        flags = {"model_path": str(model_path), "port": str(port)} | ALWAYS_DISAGGREGATE
        self.child = cluster.local.start_process("coordinator", name, flags)
        self.url = f"http://127.0.0.1:{port}"
        self.http = http_client(self.url)
        self.admin = Client(self.url)
        expected = len(cluster.local.plan.node_names)
        wait_until(lambda: self.num_nodes() == expected, "all nodes at the new coordinator")

    def num_nodes(self) -> int:
        try:
            return len(self.admin.nodes())
        except ClientError:
            return 0  # not listening yet

    def stop(self) -> None:
        """As a rolling restart does, and waits for the end."""
        self.child.terminate()
        self.child.wait(60.0)

    def kill(self) -> None:
        self.child.process.send_signal(signal.SIGKILL)
        self.child.wait()


class Pair:
    """A cluster, the model of it, and its two coordinators."""

    def __init__(self, cluster: Cluster, model: tuple[Path, PreTrainedModel]) -> None:
        self.cluster = cluster
        self.model_path, self.reference = model
        self.second = Coordinator(cluster, self.model_path, "coordinator-2")

    @property
    def admins(self) -> tuple[Client, Client]:
        return self.cluster.admin, self.second.admin

    def restart_second(self) -> None:
        """Kills the second coordinator and starts another one in its place."""
        self.second.kill()
        self.second = Coordinator(self.cluster, self.model_path, "coordinator-2")

    @property
    def ports(self) -> tuple[int, int]:
        return self.cluster.local.plan.port, self.second.port

    def roll_coordinators(self) -> None:
        """Stops each coordinator and starts it again at its port, one after the other."""
        first = self.cluster.local.children["coordinator"]
        first.terminate()
        first.wait(60.0)
        Coordinator(self.cluster, self.model_path, "coordinator", self.ports[0])
        self.second.stop()
        self.second = Coordinator(self.cluster, self.model_path, "coordinator-2", self.second.port)

    def roll_nodes(self, *names: str) -> None:
        """Stops each of these nodes and starts it again, one after the other; all without names."""
        for name in names or self.cluster.local.plan.node_names:
            child = self.cluster.local.children[name]
            child.terminate()
            child.wait(60.0)
            self.cluster.restart_killed_nodes()

    def post(self, who: int, path: str, body: dict[str, Any]) -> httpx.Response:
        """Returns what the first (0) or the second (1) coordinator replies."""
        return (self.cluster.http, self.second.http)[who].post(path, json=body)

    @contextmanager
    def stream(self, who: int, body: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """Gives the events of a stream of one coordinator, without the [DONE] that ends it."""
        http = (self.cluster.http, self.second.http)[who]
        with http.stream("POST", "/generate", json=body | {"stream": True}) as response:
            assert response.status_code == 200, response.read()
            yield events(response)

    def generate(self, who: int, prompt: list[int]) -> dict[str, Any]:
        """Returns an answer of the first (0) or of the second (1) coordinator."""
        http = (self.cluster.http, self.second.http)[who]
        response = http.post("/generate", json=body_of(prompt))
        assert response.status_code == 200, response.text
        return dict(response.json())

    def owned(self, admin: Client) -> tuple[int, int]:
        """Returns the numbers of unique pages and of replicas in one coordinator's index."""
        cluster = admin.cache_stats()["cluster"]
        return cluster["unique_owned_pages"], cluster["duplicate_owned_pages"]

    def wait_until_both_own(self, owned: tuple[int, int]) -> None:
        for admin in self.admins:
            wait_until(lambda a=admin: self.owned(a) == owned, f"{owned} owned pages")  # type: ignore[misc]

    def wait_until_connected(self, connected: bool) -> None:
        for admin in self.admins:
            wait_until(
                lambda a=admin: a.cache_stats()["cluster"]["redis_connected"] == connected,  # type: ignore[misc]
                f"redis_connected {connected}",
            )


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Gives the events of a stream, without the [DONE] that must end it."""
    for line in response.iter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream broke off")


def restart_under_streams(pair: Pair, url: str, restart: Callable[[], None]) -> int:
    """Restarts processes while 20 clients stream through the proxy at `url`; none may see anything
    of it. Returns how many streams ended meanwhile."""
    prompts = [prompt_of(40, 199, seed=400 + i) for i in range(NUM_STREAMS)]
    expected = [reference_tokens(pair.reference, prompt, NUM_TOKENS) for prompt in prompts]
    is_over = threading.Event()

    def stream_again_and_again(who: int) -> int:
        num_ended = 0
        body = body_of(prompts[who], max_new_tokens=NUM_TOKENS) | {"stream": True}
        with http_client(url) as http:
            while not is_over.is_set():
                with http.stream("POST", "/generate", json=body) as response:
                    assert response.status_code == 200, response.read()
                    *_, last = events(response)
                assert last["output_ids"] == expected[who], last
                num_ended += 1
        return num_ended

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        streams = [pool.submit(stream_again_and_again, who) for who in range(NUM_STREAMS)]
        try:
            restart()
        finally:
            is_over.set()
        return sum(stream.result() for stream in streams)
