"""A decode node process: a node whose work is to answer requests."""

from __future__ import annotations

from decode.answers import Answers
from node.build import run_node
from node.config import NodeConfig


def run(config: NodeConfig) -> None:
    """Runs a decode node until SIGTERM or SIGINT."""
    run_node("decode", config, [Answers])
