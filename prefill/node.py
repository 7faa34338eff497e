"""A prefill node process: the shared shell around `PrefillScheduler`."""

from __future__ import annotations

from engine.cache.prefix_cache import PrefixCache
from node.build import run_node
from node.config import NodeConfig
from prefill.scheduler import PrefillLimits, PrefillScheduler
from protocol.hashing import PageHasher
from protocol.ids import Addresses, Node
from protocol.messages import NodeInfo


def run(config: NodeConfig) -> None:
    """Serves until SIGTERM or SIGINT."""

    def make(
        node: Node, info: NodeInfo, cache: PrefixCache, hasher: PageHasher
    ) -> PrefillScheduler:
        limits = PrefillLimits(
            chunk_tokens=config.chunk_tokens(info.device),
            max_running=config.max_running_requests,
            max_waiting=config.max_queued_requests,
        )
        addresses = Addresses(info.control_address, info.data_addresses)
        return PrefillScheduler(node, addresses, cache, hasher, limits)

    run_node("prefill", config, make)
