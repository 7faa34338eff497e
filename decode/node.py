"""A decode node process: the shared shell around `DecodeScheduler`."""

from __future__ import annotations

from decode.scheduler import DecodeLimits, DecodeScheduler
from engine.cache.prefix_cache import PrefixCache
from node.build import run_node
from node.config import NodeConfig
from protocol.hashing import PageHasher
from protocol.ids import Addresses, Node
from protocol.messages import NodeInfo


def run(config: NodeConfig) -> None:
    """Serves until SIGTERM or SIGINT."""

    def make(node: Node, info: NodeInfo, cache: PrefixCache, hasher: PageHasher) -> DecodeScheduler:
        limits = DecodeLimits(
            chunk_tokens=config.chunk_tokens(info.device),
            max_running=config.max_running_requests,
            max_waiting=config.max_queued_requests,
            receive_timeout_s=config.receive_timeout_s,
        )
        addresses = Addresses(info.control_address, info.data_addresses)
        return DecodeScheduler(node, addresses, cache, hasher, limits)

    run_node("decode", config, make)
