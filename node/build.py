"""Puts one node process together from its settings, and runs it until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.cache.prefix_cache import PrefixCache
from node.config import NodeConfig
from node.core.core import NodeCore
from node.core.scheduler import Scheduler, SchedulerLimits
from node.core.work import WorkFactory
from node.ranks.engine import Engine, start_engine
from node.shell.heartbeat import Heartbeats
from node.shell.publisher import OwnershipPublisher
from node.shell.shell import NodeShell
from protocol.channel import Channel
from protocol.config import describe
from protocol.hashing import PageHasher
from protocol.hosts import advertised_host
from protocol.ids import Addresses, Node, Role
from protocol.messages import NodeInfo
from protocol.model.tokenizer import check_tokenizer

log = logging.getLogger(__name__)

STALL_S = 120.0
"""A step that takes longer than this is taken for a hang."""


def run_node(role: Role, config: NodeConfig, kinds: Sequence[WorkFactory]) -> None:
    """Runs one node, which does these kinds of work, until SIGTERM or SIGINT. `role` is what it
    tells others that it prefers to do.

    Raises ConfigError, the engine's model errors, and RankLost if a rank ends before that.
    """
    torch.set_num_threads(config.cpu_threads)
    check_tokenizer(Path(config.model_path))
    node = _identity(role, config)
    with start_engine(config, node) as engine:
        _serve(role, config, node, engine, kinds)
        engine.raise_if_lost()


def _serve(
    role: Role, config: NodeConfig, node: Node, engine: Engine, kinds: Sequence[WorkFactory]
) -> None:
    host = advertised_host(config.host, config.advertise_host, config.redis_url)
    channel = Channel(config.host, config.control_port, host)
    info = NodeInfo(
        node=node,
        control_address=channel.address,
        data_addresses=engine.data_addresses,
        layout=engine.layout,
        model_fingerprint=engine.fingerprint,
        num_pages=engine.num_pages,
        max_running_requests=config.max_running_requests,
        max_queued_requests=config.max_queued_requests,
        device=engine.device,
        context_length=config.context_length,
        max_itl_s=config.max_itl_ms / 1e3,
    )
    log.info("%s node settings: %s", role, describe(config))
    core = _core(role, config, info, kinds)
    publisher = OwnershipPublisher(
        config.redis_url, info, config.lease_s, on_replaced=lambda: replaced()
    )
    heartbeats = Heartbeats(
        channel.outgoing(), info, config.lease_s, STALL_S, lambda: publisher.coordinators
    )
    shell = NodeShell(
        core,
        channel,
        engine.transport,
        engine.runner,
        publisher,
        heartbeats,
        time.monotonic,
    )

    def replaced() -> None:
        log.error("a newer process registered as %r; this one stops", node.name)
        shell.stop()

    engine.when_lost(lambda _: shell.stop())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: shell.stop())
    publisher.start()
    heartbeats.start()
    log.info("%s node %s is ready: %d pages", role, node, info.num_pages)
    try:
        shell.run()
    finally:
        heartbeats.close()
        publisher.close()
        engine.transport.close()
        channel.close()


def _core(role: Role, config: NodeConfig, info: NodeInfo, kinds: Sequence[WorkFactory]) -> NodeCore:
    cache = PrefixCache(info.num_pages, info.layout.page_size)
    limits = SchedulerLimits(
        chunk_tokens=config.chunk_tokens(info.device),
        max_running=config.max_running_requests,
        max_waiting=config.max_queued_requests,
        max_itl_s=config.max_itl_ms / 1e3,
        receive_timeout_s=config.receive_timeout_s,
    )
    addresses = Addresses(info.control_address, info.data_addresses)
    hasher = PageHasher(info.model_fingerprint, info.layout)
    scheduler = Scheduler(role, info.node, addresses, cache, hasher, limits, kinds)
    return NodeCore(info.node, cache, scheduler)


def _identity(role: Role, config: NodeConfig) -> Node:
    name = config.name or f"{role}-{socket.gethostname()}-{os.getpid()}"
    return Node(name, time.time_ns())
