"""A real cluster, processes and sockets and Redis, as the tests of it drive it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel

from infra.cluster import ClusterPlan, LocalCluster
from infra.ports import free_port
from infra.process import Child, Start
from kvrelay.client import Client
from tests.support.models.families import save_random_model
from tests.support.processes.forked import start_forked

DEADLINE_S = 30.0
ALWAYS_DISAGGREGATE = {"policy": "disaggregate"}


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Polls until `condition()` is true; its value."""
    deadline = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {deadline_s:g} s"
        time.sleep(0.02)


def body_of(prompt: str | list[int], cache_salt: str = "", **sampling: Any) -> dict[str, Any]:
    """Of POST /generate."""
    params = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": 8} | sampling
    key = "text" if isinstance(prompt, str) else "input_ids"
    return {key: prompt, "cache_salt": cache_salt, "sampling_params": params}


def http_client(url: str, admin_token: str = "") -> httpx.Client:
    """Threads may share it: it keeps no idle connections, of which httpx can close one that another
    thread has just chosen."""
    headers = {"Authorization": f"Bearer {admin_token}"} if admin_token else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.Client(base_url=url, timeout=120.0, headers=headers, limits=limits)


def _is_idle(node: dict[str, Any]) -> bool:
    """Nothing runs, waits or is held, says its newest heartbeat."""
    load = node["load"]
    return bool(load["num_running"] == load["num_waiting"] == load["held_pages"] == 0)


class Cluster:
    """A running cluster and shorthands for tests."""

    def __init__(self, local: LocalCluster) -> None:
        self.local = local
        self.http = http_client(local.url, local.admin_token)
        self.admin = Client(local.url, local.admin_token)

    def generate(
        self, prompt: str | list[int], cache_salt: str = "", **sampling: Any
    ) -> dict[str, Any]:
        response = self.http.post("/generate", json=body_of(prompt, cache_salt, **sampling))
        assert response.status_code == 200, response.text
        return dict(response.json())

    def stats(self) -> dict[str, Any]:
        """Of the cluster as a whole."""
        return dict(self.admin.cache_stats()["cluster"])

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["name"]: node for node in self.http.get("/admin/nodes").json()}

    def total(self, counter: str) -> int:
        """Sums one number of the loads of all nodes."""
        return sum(node["load"][counter] for node in self.nodes().values())

    def counted(self, counter: str) -> int:
        """Sums one of the counters of all nodes."""
        return sum(node["load"]["counters"][counter] for node in self.nodes().values())

    def wait_until_idle(self) -> None:
        """Until every node reports that nothing runs, waits or is held; and no page is lost."""

        def idle_nodes() -> list[dict[str, Any]]:
            nodes = list(self.nodes().values())
            return nodes if all(map(_is_idle, nodes)) else []

        for node in wait_until(idle_nodes, "quiescence"):
            load = node["load"]
            assert load["free_pages"] + load["cached_pages"] == node["num_pages"]

    def settle(self) -> dict[str, dict[str, Any]]:
        """Idle, with heartbeats newer than now: counters are exact."""
        names = self.nodes().keys()
        time_of_reading = time.monotonic()

        def settled() -> dict[str, dict[str, Any]]:
            # A new heartbeat may still be from within the request's last moments, and an idle one
            # from before the request: both must hold of the same heartbeat.
            age, nodes = time.monotonic() - time_of_reading, self.nodes()
            known = [node for name, node in nodes.items() if name in names]
            is_settled = all(n["last_heartbeat_s_ago"] < age and _is_idle(n) for n in known)
            return nodes if is_settled else {}

        wait_until(settled, "an idle heartbeat of every node")
        self.wait_until_idle()
        return self.nodes()

    def flush(self) -> None:
        self.settle()
        response = self.http.post("/flush_cache")
        assert response.status_code == 200, response.text
        wait_until(lambda: self.stats()["unique_owned_pages"] == 0, "an empty index")

    def forget(self, node: str) -> None:
        """Empties the cache of one node, until the coordinator knows."""
        self.settle()
        self.admin.flush(node=node)
        wait_until(
            lambda: self.admin.cache_stats()["nodes"][node]["owned_pages"] == 0, "an empty node"
        )

    def kill(self, name: str) -> None:
        child = self.local.children[name]
        child.process.send_signal(signal.SIGKILL)
        child.wait()

    def restart_killed_nodes(self) -> None:
        """Until the coordinator knows their new lives."""
        killed = [name for name, child in self.local.children.items() if not child.alive]
        before = self.nodes()
        for name in killed:
            self.local.start_node("prefill" if name[0] == "p" else "decode", name)

        def is_new(name: str) -> bool:
            node = self.nodes().get(name)
            return node is not None and (
                name not in before or node["incarnation"] > before[name]["incarnation"]
            )

        wait_until(lambda: all(map(is_new, killed)), f"a new life of {killed}")

    def restart_redis(self) -> None:
        """Redis again, at its address, and empty."""
        command = self.local.children["redis"].command
        log_file = self.local.log_dir / "redis-2.log"
        self.local.children["redis"] = Child("redis", command, log_file, lambda *_: None)


def save_servable_model(family: str, path: Path) -> PreTrainedModel:
    """A small model with random weights, and the byte-level tokenizer that a cluster needs."""
    reference = save_random_model(family, path)
    save_tokenizer(path, vocab_size=199)
    return reference


def save_tokenizer(path: Path, vocab_size: int) -> None:
    """Writes a byte-level tokenizer of a few letters to a model directory."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=list("abcdefgh"),
    )
    tokenizer.train_from_iterator(["abc def gh"], trainer)
    tokenizer.save(str(path / "tokenizer.json"))


def start_cluster(
    tmp_path_factory: pytest.TempPathFactory,
    model_path: Path,
    num_prefill: int,
    num_decode: int,
    coordinator_flags: Mapping[str, str] | None = None,
    start: Start = start_forked,
    makes_secret: bool = False,
    **node_flags: str,
) -> Cluster:
    torch.set_num_threads(1)
    local = LocalCluster(
        ClusterPlan(
            num_prefill,
            num_decode,
            "127.0.0.1",
            free_port(),
            coordinator_flags={
                "model_path": str(model_path),
                **ALWAYS_DISAGGREGATE,
                **(coordinator_flags or {}),
            },
            node_flags={"model_path": str(model_path), "kv_checksum": "true"} | node_flags,
            makes_secret=makes_secret,
            start_timeout_s=120.0,
        ),
        log_dir=tmp_path_factory.mktemp("logs"),
        start=start,
    )
    local.start()
    return Cluster(local)
