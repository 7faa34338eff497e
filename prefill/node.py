"""A prefill node process: the shared shell around `PrefillScheduler`."""

from __future__ import annotations

from engine.cache import PrefixCache
from node.build import run_node
from node.config import NodeConfig
from prefill.scheduler import PrefillLimits, PrefillScheduler
from protocol.hashing import PageHasher
from protocol.ids import Node
from protocol.messages import NodeInfo


def run(config: NodeConfig) -> None:
    """Serves until SIGTERM or SIGINT."""
    limits = PrefillLimits(
        chunk_tokens=config.chunked_prefill_size,
        max_running=config.max_running_requests,
        max_waiting=config.max_queued_requests,
    )

    def make(
        node: Node, info: NodeInfo, cache: PrefixCache, hasher: PageHasher
    ) -> PrefillScheduler:
        return PrefillScheduler(node, cache, hasher, limits)

    run_node("prefill", config, make)
