"""A kvrelay cluster as the benchmark runs it, and what its nodes tell of themselves."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.systems.layouts import Layout
from infra.cluster import ClusterPlan, LocalCluster
from infra.gpus.assignment import assign_gpus
from infra.ports import free_port
from kvrelay.client import Client

HOST = "127.0.0.1"
LOST = re.compile(r"node \S+ (is lost: no heartbeat|left)$")
"""What a coordinator logs when the lease of a node has ended, or was given up."""
FAILED = re.compile(
    r"a step of \d+ sequences failed$|the tokens of \d+ sequences are lost$"
    r"|warming up: a step of .* failed: "
)
"""What a node logs when a step fails that no request is to blame for."""
NEWS_S, POLL_S = 10.0, 0.1
"""How long a heartbeat may take to tell of what a load has done."""


@dataclass(frozen=True)
class ClusterSettings:
    """What is the same for all layouts."""

    model: Path
    num_gpus: int
    """0: all nodes on the CPU."""
    node_flags: Mapping[str, str]
    log_dir: Path


class OurCluster:
    """A running cluster."""

    def __init__(self, plan: ClusterPlan, log_dir: Path) -> None:
        self.num_lost_leases = 0
        self.num_failed_steps = 0
        self.start_s = 0.0
        """How long it took until every node was ready: loading, and compiling for serving."""
        self.local = LocalCluster(plan, log_dir, self._on_line)

    def _on_line(self, name: str, line: str) -> None:
        self.num_lost_leases += name == "coordinator" and LOST.search(line) is not None
        self.num_failed_steps += FAILED.search(line) is not None

    def health(self) -> dict[str, Any]:
        """Returns what nobody wants to see: kernels compiled while serving, steps that failed,
        leases lost, and nodes that are gone. Waits for heartbeats that are newer than this
        call."""
        asked_s = time.monotonic()
        with Client(self.local.url) as client:
            while True:
                nodes = client.nodes()
                age_s = time.monotonic() - asked_s
                told = all(node["last_heartbeat_s_ago"] < age_s for node in nodes)
                if told or age_s > NEWS_S:
                    break
                time.sleep(POLL_S)
        missing = set(self.local.plan.node_names) - {node["name"] for node in nodes}
        counters = [node["load"]["counters"] for node in nodes]
        return {
            "compiles_while_serving": sum(c["compiles_while_serving"] for c in counters),
            "transfer_failures": sum(c["transfer_failures"] for c in counters),
            "failed_steps": self.num_failed_steps,
            "lost_leases": self.num_lost_leases,
            "missing_nodes": sorted(missing),
        }


@contextmanager
def our_cluster(layout: Layout, settings: ClusterSettings) -> Iterator[OurCluster]:
    """Runs a cluster in this layout until the context ends. Raises ConfigError or StartError."""
    cluster = OurCluster(plan_of(layout, settings, free_port()), settings.log_dir)
    began_s = time.monotonic()
    with cluster.local:
        cluster.start_s = time.monotonic() - began_s
        print(f"{layout.name:>16} | ready after {cluster.start_s:.0f} s", flush=True)
        yield cluster


def plan_of(layout: Layout, settings: ClusterSettings, port: int) -> ClusterPlan:
    """Returns the processes of a layout, on the GPUs that `kvrelay up` would choose. Raises
    ConfigError if a node has more ranks than there are GPUs."""
    on_gpus = assign_gpus(settings.num_gpus, layout.sizes) if settings.num_gpus else {}
    model = {"model_path": str(settings.model)}
    return ClusterPlan(
        num_prefill=layout.num_prefill,
        num_decode=layout.num_decode,
        host=HOST,
        port=port,
        coordinator_flags=model | {"policy": layout.policy},
        node_flags=model | ({} if on_gpus else {"device": "cpu"}) | dict(settings.node_flags),
        prefill_flags={"tensor_parallel_size": str(layout.prefill_ranks)},
        decode_flags={"tensor_parallel_size": str(layout.decode_ranks)},
        assignments=on_gpus,
    )
