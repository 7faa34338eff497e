"""`kvrelay up`: runs a whole cluster on this host until Ctrl-C."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.config import CoordinatorConfig
from coordinator.key_file import with_file_keys
from infra import models
from infra.cluster import ClusterPlan, LocalCluster, ended, names_of_nodes
from infra.gpus.assignment import GpuAssignment, assign_gpus, told
from infra.gpus.visible import num_visible_gpus
from infra.worker_lives import Restarts
from node.config import NodeConfig
from node.model_check import check_model
from protocol.config import ConfigError, option, require, resolve
from protocol.trust.options import TrustOptions

WATCH_S = 0.5
NOT_FOR_UP = {"name", "control_port", "data_port", "health_port"}
"""Settings of a single node, which all nodes of a cluster cannot share."""


MOST_NODES = 1024
"""As many as the largest simulated cluster; each is a process with a model of its own."""


@dataclass(frozen=True)
class UpConfig:
    """Settings of `kvrelay up` itself, beside those of the processes that it starts."""

    prefill: int = option(1, "number of prefill nodes")
    decode: int = option(1, "number of decode nodes")
    prefill_tensor_parallel_size: int = option(0, "of prefill nodes; 0: --tensor-parallel-size")
    decode_tensor_parallel_size: int = option(0, "of decode nodes; 0: --tensor-parallel-size")
    redis_url: str = option("", "a Redis of yours; empty: a private one is started")
    log_dir: str = option(
        "", "directory of the processes' logs; empty: a temporary one, removed at the end"
    )

    def __post_init__(self) -> None:
        require(self.prefill >= 0, "--prefill must be 0 or more")
        require(self.decode >= 1, "--decode must be at least 1")
        require(
            self.prefill + self.decode <= MOST_NODES,
            f"--prefill and --decode are {self.prefill} and {self.decode}; one host may have at "
            f"most {MOST_NODES} nodes",
        )
        for role in ("prefill", "decode"):
            require(
                getattr(self, f"{role}_tensor_parallel_size") >= 0,
                f"--{role}-tensor-parallel-size must be 0 or more",
            )


def plan(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    count_gpus: Callable[[Mapping[str, str]], int] = num_visible_gpus,
) -> ClusterPlan:
    """Returns what `kvrelay up` is to start. Raises ConfigError for any wrong setting of any
    process, so that no process is started in vain."""
    for name in sorted(NOT_FOR_UP):
        flag, variable = "--" + name.replace("_", "-"), "KVRELAY_" + name.upper()
        if name in flags or environment.get(variable):
            given = flag if name in flags else variable
            raise ConfigError(f"{given} is for a single process; `kvrelay up` chooses it itself")
    own = resolve(UpConfig, flags, environment)
    # It makes a secret if there is none, so that no host is refused for the lack of one.
    trust = resolve(TrustOptions, flags, environment)
    made = {} if trust.has_secret or trust.insecure else {"insecure": "true"}
    coordinator = resolve(CoordinatorConfig, {**flags, **made}, environment)
    node = resolve(NodeConfig, {**flags, **made}, environment)
    model, note = _checked_model(own, node)
    assignments = _assignments(own, node, count_gpus, environment)
    name = coordinator.served_model_name or models.served_name(coordinator.model_path)
    return ClusterPlan(
        num_prefill=own.prefill,
        num_decode=own.decode,
        host=coordinator.host,
        port=coordinator.port,
        redis_url=own.redis_url,
        coordinator_flags=_flags_of(CoordinatorConfig, flags)
        | {"model_path": model}
        | ({"served_model_name": name} if name else {}),
        node_flags=_flags_of(NodeConfig, flags) | {"model_path": model},
        makes_secret=bool(made),
        api_key="".join(with_file_keys(coordinator).api_key[:1]),
        notes=tuple(filter(None, (note, told(assignments) if assignments else ""))),
        assignments=assignments,
        prefill_flags=_size_flags(own.prefill_tensor_parallel_size),
        decode_flags=_size_flags(own.decode_tensor_parallel_size),
        drain_timeout_s=coordinator.drain_timeout_s,
    )


def _checked_model(own: UpConfig, node: NodeConfig) -> tuple[str, str]:
    """Returns the directory of the model, and a note on --trust-remote-code or "". Raises
    ModelDirectoryError or UnsupportedModel, before any weights of the hub are fetched."""
    small = models.path(node.model_path, with_weights=False)
    sizes = set(_sizes_of_nodes(own, node).values())
    note = check_model(dataclasses.replace(node, model_path=small), sizes)
    if node.load_format == "dummy":
        return small, note
    return models.path(node.model_path, with_weights=True), note


def _sizes_of_nodes(own: UpConfig, node: NodeConfig) -> dict[str, int]:
    """Returns the tensor-parallel size of every node, by its name."""
    prefill = own.prefill_tensor_parallel_size or node.tensor_parallel_size
    decode = own.decode_tensor_parallel_size or node.tensor_parallel_size
    names = names_of_nodes(own.prefill, own.decode)
    return {name: prefill if name.startswith("p") else decode for name in names}


def _assignments(
    own: UpConfig,
    node: NodeConfig,
    count_gpus: Callable[[Mapping[str, str]], int],
    environment: Mapping[str, str],
) -> dict[str, GpuAssignment]:
    """Returns the GPUs of each node. Returns nothing where there is nothing to choose: no GPU is
    visible, or --device names one device for all. Raises ConfigError."""
    if node.device not in ("auto", "cuda"):
        return {}
    num_gpus = count_gpus(environment)
    return assign_gpus(num_gpus, _sizes_of_nodes(own, node)) if num_gpus else {}


def up(flags: Mapping[str, Any]) -> None:
    """Starts the cluster and serves until SIGINT or SIGTERM. Raises ConfigError or StartError."""
    planned = plan(flags, os.environ)
    for note in planned.notes:
        print(f"kvrelay: {note}", file=sys.stderr)
    log_dir = resolve(UpConfig, flags, os.environ).log_dir
    cluster = LocalCluster(planned, Path(log_dir) if log_dir else None, print_line)
    interrupt_on_signals()
    try:
        cluster.start()
        print(f"kvrelay serves at {cluster.url}   (Ctrl-C stops it; logs: {cluster.log_dir})")
        if cluster.secret_file is not None and planned.redis_url:
            print(f"other processes join with --cluster-secret-file {cluster.secret_file}")
        watch(cluster)
    except KeyboardInterrupt:
        print("stopping …", flush=True)
    finally:
        stop_undisturbed(cluster)


def interrupt_on_signals() -> None:
    """Makes SIGTERM end the launcher as Ctrl-C does, by a KeyboardInterrupt."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def stop_undisturbed(cluster: LocalCluster) -> None:
    """Stops a cluster. A second signal does not end the launcher before its processes, but ends the
    time that running requests have."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: cluster.hurry())
    cluster.stop()


def watch(cluster: LocalCluster) -> None:
    """Watches the cluster until it is interrupted. A node that ends is started again, after a wait
    that grows when it happens often; both is printed.

    Raises StartError when the coordinator or the private Redis ends.
    """
    restarts: Restarts[str] = Restarts()
    for name in cluster.plan.node_names:
        restarts.started(name, time.monotonic())
    while True:
        time.sleep(WATCH_S)
        start_nodes_again(cluster, restarts, time.monotonic())


def start_nodes_again(cluster: LocalCluster, restarts: Restarts[str], now: float) -> None:
    """Plans restarts of the nodes that have ended, and starts those whose wait is over. Raises
    StartError if another process has ended."""
    for name, child in cluster.children.items():
        if child.alive or restarts.is_waiting(name):
            continue
        if name not in cluster.plan.node_names:
            raise ended(child)
        wait_s = restarts.ended(name, now)
        code = child.process.returncode
        print(f"{name} ended (exit code {code}); it starts again in {wait_s:.1f} s", flush=True)
    for name in restarts.due(now):
        restarts.started(name, now)
        try:
            cluster.start_planned_node(name)
        except OSError as error:  # no memory, or no process left
            wait_s = restarts.ended(name, now)
            print(f"{name} cannot start ({error}); again in {wait_s:.1f} s", flush=True)


def print_line(name: str, line: str) -> None:
    """Prints a line that the process `name` has logged."""
    print(f"{name:>12} | {line}", flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _size_flags(tensor_parallel_size: int) -> dict[str, str]:
    """Returns the flag for the ranks of one role's nodes; none for 0, as all nodes' flag holds."""
    size = tensor_parallel_size
    return {"tensor_parallel_size": str(size)} if size else {}


def _flags_of(config: type, flags: Mapping[str, Any]) -> dict[str, str]:
    """Returns those of `flags` that are settings of `config`, but for those that `LocalCluster`
    gives each process itself, and the one that was dealt with when the model was checked."""
    names = {field.name for field in dataclasses.fields(config)}
    skip = {"redis_url", "host", "port", "trust_remote_code"}
    return {name: str(text) for name, text in flags.items() if name in names - skip}
