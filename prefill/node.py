"""A prefill node process: a node whose work is to compute prompts for other nodes."""

from __future__ import annotations

from node.build import run_node
from node.config import NodeConfig
from prefill.handovers import Handovers


def run(config: NodeConfig) -> None:
    """Runs a prefill node until SIGTERM or SIGINT."""
    run_node("prefill", config, [Handovers])
