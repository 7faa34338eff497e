"""A decode node process: the shared shell around `DecodeScheduler`."""

from __future__ import annotations

from decode.scheduler import DecodeLimits, DecodeScheduler
from engine.cache import PrefixCache
from node.build import run_node
from node.config import NodeConfig
from protocol.hashing import PageHasher
from protocol.ids import Node
from protocol.messages import NodeInfo


def run(config: NodeConfig) -> None:
    """Serves until SIGTERM or SIGINT."""
    limits = DecodeLimits(
        chunk_tokens=config.chunked_prefill_size,
        max_running=config.max_running_requests,
        max_waiting=config.max_queued_requests,
        receive_timeout_s=config.receive_timeout_s,
    )

    def make(node: Node, info: NodeInfo, cache: PrefixCache, hasher: PageHasher) -> DecodeScheduler:
        addresses = (info.control_address, info.data_address)
        return DecodeScheduler(node, addresses, cache, hasher, limits)

    run_node("decode", config, make)
