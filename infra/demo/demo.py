"""Starts the demo's cluster, of two prefill and two decode nodes, shows it and serves on."""

from __future__ import annotations

import os
import time

from rich.console import Console

from infra import models
from infra.cluster import ClusterPlan, LocalCluster
from infra.demo.steps import Demo
from infra.demo.texts import CAT, chat
from infra.up import interrupt_on_signals, stop_undisturbed, watch
from kvrelay.client import Client


def demo(port: int, admin_token: str, once: bool, checks_times: bool) -> None:
    """Starts a cluster, shows it at work, and serves until Ctrl-C unless `once`. Without
    `checks_times` what is computed has to be right, and not how long it takes.

    Raises StepFailed, ConfigError or StartError.
    """
    console = Console(highlight=False)
    console.print(
        "[bold]kvrelay[/bold]: Redis, a coordinator, 2 prefill and 2 decode nodes are starting …"
    )
    started = time.monotonic()
    # The coordinator reads its keys from the environment too.
    api_key = os.environ.get("KVRELAY_API_KEY", "").partition(",")[0]
    cluster = LocalCluster(_plan(port, admin_token, api_key))
    interrupt_on_signals()
    try:
        cluster.start()
        console.print(f"[dim]ready after {time.monotonic() - started:.0f} s[/dim]")
        with Client(cluster.url, cluster.admin_token, api_key=api_key) as client:
            Demo(cluster, client, console, api_key).show(checks_times)
        if not once:
            _keep_serving(cluster, console)
    except KeyboardInterrupt:
        console.print("stopping …")
    finally:
        stop_undisturbed(cluster)


def _plan(port: int, admin_token: str, api_key: str) -> ClusterPlan:
    flags = {"model_path": str(models.EMBEDDED)}
    # An idle decode node would compute the prompts itself, and no page would move.
    routing = {"policy": "disaggregate", "admin_token": admin_token}
    return ClusterPlan(
        num_prefill=2,
        num_decode=2,
        host="127.0.0.1",
        port=port,
        redis_url=os.environ.get("KVRELAY_REDIS_URL", ""),
        coordinator_flags=flags | routing,
        node_flags=flags,
        api_key=api_key,
        makes_secret=True,
    )


def _keep_serving(cluster: LocalCluster, console: Console) -> None:
    """Prints what to try, and returns when the cluster is interrupted."""
    console.rule("serving until Ctrl-C")
    console.print(f"live page   {cluster.url}/admin/\nstatistics  kvrelay top --url {cluster.url}")
    console.out(
        f"curl -N {cluster.url}/generate -d '"
        f'{{"text": "{chat(CAT)}", "sampling_params": {{"temperature": 0}}, "stream": true}}\'\n',
        highlight=False,
    )
    watch(cluster)
