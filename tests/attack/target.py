"""`Target`: a running cluster under attack: its ports, and how it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from protocol.hashing import PageHash, PageHasher
from protocol.layout import KVLayout
from protocol.namespace import Namespace
from protocol.redis.client import connect
from protocol.redis.coordinators import COORDINATORS_KEY
from tests.support.processes.clusters import Cluster, wait_until

SALT = "a tenant's secret word"
PROMPT = list(range(20, 120))


class Target:
    """What an attacker finds out, and what its victims answer."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.expected = cluster.generate(PROMPT, cache_salt=SALT)["output_ids"]
        self.nodes = cluster.nodes()
        redis = connect(cluster.local.redis_url, timeout_s=5.0)
        (coordinator,) = redis.zrange(COORDINATORS_KEY, 0, -1)
        redis.close()
        self.coordinator_address: str = coordinator.decode()
        self._pids = self._living()

    def node(self, role: str) -> dict[str, Any]:
        return next(node for node in self.nodes.values() if node["role"] == role)

    @property
    def control_addresses(self) -> list[str]:
        """Of all processes."""
        nodes = [node["control_address"] for node in self.nodes.values()]
        return [self.coordinator_address, *nodes]

    def stolen_hashes(self, role: str) -> list[PageHash]:
        """The page hashes of the tenant's prompt. Weights are public; say that its salt was
        guessed."""
        node = self.node(role)
        hasher = PageHasher(node["model_fingerprint"], KVLayout(**node["layout"]))
        return hasher.hashes(PROMPT, Namespace(SALT))

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """Afterwards everybody lives, nobody has come, nothing is lost, and answers are right."""
        cached = self.cluster.settle()
        yield
        answer = self.cluster.generate(PROMPT, cache_salt=SALT)
        assert answer["output_ids"] == self.expected, "the answer has changed"
        assert answer["meta_info"]["cached_tokens"] > 0, "the caches were emptied"
        assert self._living() == self._pids, "a process has ended"
        nodes = self.cluster.settle()
        incarnations = {name: node["incarnation"] for name, node in nodes.items()}
        assert incarnations == {n: node["incarnation"] for n, node in self.nodes.items()}
        assert nodes.keys() == cached.keys(), "somebody has joined or left"
        assert self.cluster.admin.audit(repair=False)["clean"]

    def refusals(self) -> int:
        """How many refusals all processes have counted."""
        stats = self.cluster.stats()
        return int(stats["refusals"] + stats["node_counters"]["refusals"])

    def await_refusals(self, count: int, what: str) -> None:
        wait_until(lambda: self.refusals() >= count, f"the refusal of {what}")

    def listening_ports(self) -> dict[str, set[int]]:
        """The TCP ports on which each node and its children listen."""
        found: dict[str, set[int]] = {}
        for name in self.nodes:
            process = psutil.Process(self.cluster.local.children[name].process.pid)
            family = [process, *process.children(recursive=True)]
            found[name] = {
                connection.laddr.port
                for member in family
                for connection in member.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
        return found

    def _living(self) -> dict[str, int]:
        children = self.cluster.local.children
        return {name: child.process.pid for name, child in children.items() if child.alive}
