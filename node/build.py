"""Puts one node process together from its settings, and runs it until it is told to stop."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.cache.prefix_cache import PrefixCache
from engine.steps.warm_up import WarmUpLimits
from node.config import NodeConfig
from node.core.core import NodeCore
from node.core.scheduler import Scheduler, SchedulerLimits
from node.core.work import WorkFactory
from node.liveness.heartbeats import Heartbeats
from node.liveness.process import CompanionProcess
from node.ranks.engine import Engine, start_engine
from node.resources import leave_garbage_be
from node.shell.meetings import Meetings
from node.shell.publisher import OwnershipPublisher
from node.shell.shell import NodeShell
from node.stop_signals import StopSignals
from node.warm_up import warm_up
from protocol.channel import Channel
from protocol.config import describe
from protocol.hashing import PageHasher
from protocol.hosts import advertised_host
from protocol.ids import Addresses, Node, Role
from protocol.messages import NodeInfo
from protocol.model.tokenizer import check_tokenizer
from protocol.trust.refusals import Refusals
from protocol.trust.secrets import ClusterSecrets
from protocol.trust.versions import OURS

log = logging.getLogger(__name__)

CPU_WARM_UP_TOKENS = 32
"""The longest prompt and context of a warm-up on a CPU."""


def run_node(
    role: Role, config: NodeConfig, kinds: Sequence[WorkFactory], signals: StopSignals
) -> None:
    """Runs one node, which does these kinds of work, until SIGTERM or SIGINT, which `signals`
    obeys. At SIGTERM it finishes what it does, for `drain_timeout_s` at most. `role` is what it
    tells others that it prefers to do.

    Raises ConfigError, the engine's model errors, and RankLost if a rank ends before that.
    """
    torch.set_num_threads(config.cpu_threads)
    check_tokenizer(Path(config.model_path))
    node = _identity(role, config)
    secrets = ClusterSecrets.of(config.cluster_secret, config.cluster_secret_file)
    refusals = Refusals()
    # Before the weights are loaded: the health port answers from the start on.
    companion = CompanionProcess(
        node,
        config.host,
        config.health_port,
        config.redis_url,
        config.lease_s,
        config.stall_s,
        config.log_level,
        config.log_format,
        config.cluster_secret,
        config.cluster_secret_file,
        config.metric_names,
    )
    try:
        host = advertised_host(config.host, config.advertise_host, config.redis_url)
        health_address = f"{host}:{companion.health_port}"
        with start_engine(config, node, health_address, refusals) as engine:
            channel = Channel(config.host, config.control_port, host, secrets, refusals)
            _serve(role, config, node, engine, companion, channel, health_address, kinds, signals)
            engine.raise_if_lost()
    finally:
        companion.close()


def _serve(
    role: Role,
    config: NodeConfig,
    node: Node,
    engine: Engine,
    companion: CompanionProcess,
    channel: Channel,
    health_address: str,
    kinds: Sequence[WorkFactory],
    signals: StopSignals,
) -> None:
    info = _info(config, node, engine, channel.address, health_address)
    log.info("%s node settings: %s", role, describe(config))
    if warning := config.insecure_warning(config.host):
        log.warning(warning)
    warm_up(engine.runner, _warm_up_limits(config, engine))
    core = _core(role, config, info, kinds, engine.vocab_size)
    publisher = OwnershipPublisher(
        config.redis_url, info, config.lease_s, on_replaced=lambda: replaced()
    )
    heartbeats = Heartbeats(
        companion.board, info, lambda: publisher.coordinators, companion.tell_news
    )
    shell = NodeShell(
        core,
        channel,
        engine.transport,
        engine.runner,
        publisher,
        heartbeats,
        time.monotonic,
        lambda: channel.refusals.total,
    )

    def replaced() -> None:
        log.error("a newer process registered as %r; this one stops", node.name)
        shell.stop()

    engine.when_lost(lambda _: shell.stop())
    companion.when_lost(shell.stop)
    meetings = Meetings(config.redis_url, info, engine.transport)
    meetings.start()
    signals.obey(shell.leave, shell.stop)
    publisher.start()
    leave_garbage_be()
    log.info("%s node %s is ready: %d pages", role, node, info.num_pages)
    try:
        shell.run()
    finally:
        companion.close()  # first, so that nobody sends anything more to this node
        meetings.close()
        publisher.close()
        engine.transport.close()
        channel.close()


def _info(
    config: NodeConfig, node: Node, engine: Engine, control_address: str, health_address: str
) -> NodeInfo:
    return NodeInfo(
        node=node,
        control_address=control_address,
        data_addresses=engine.data_addresses,
        layout=engine.layout,
        model_fingerprint=engine.fingerprint,
        num_pages=engine.num_pages,
        max_running_requests=config.max_running_requests,
        max_queued_requests=config.max_queued_requests,
        device=engine.device,
        context_length=config.context_length,
        health_address=health_address,
        max_itl_s=config.max_itl_ms / 1e3,
        chunk_tokens=config.chunk_tokens(engine.device),
        versions=OURS,
    )


def _warm_up_limits(config: NodeConfig, engine: Engine) -> WarmUpLimits:
    """Returns the limits of the node; on a CPU small ones, as it compiles nothing for a size."""
    limits = WarmUpLimits(
        chunk_tokens=config.chunk_tokens(engine.device),
        max_running=config.max_running_requests,
        page_size=engine.layout.page_size,
        num_pages=engine.num_pages,
        context_length=config.context_length or engine.context_length,
    )
    return limits if engine.device.startswith("cuda") else limits.at_most(CPU_WARM_UP_TOKENS)


def _core(
    role: Role,
    config: NodeConfig,
    info: NodeInfo,
    kinds: Sequence[WorkFactory],
    vocab_size: int,
) -> NodeCore:
    cache = PrefixCache(info.num_pages, info.layout.page_size)
    limits = SchedulerLimits(
        chunk_tokens=config.chunk_tokens(info.device),
        max_running=config.max_running_requests,
        max_waiting=config.max_queued_requests,
        max_itl_s=config.max_itl_ms / 1e3,
        receive_timeout_s=config.receive_timeout_s,
        vocab_size=vocab_size,
    )
    addresses = Addresses(info.control_address, info.data_addresses)
    hasher = PageHasher(info.model_fingerprint, info.layout)
    scheduler = Scheduler(role, info.node, addresses, cache, hasher, limits, kinds)
    return NodeCore(info.node, cache, scheduler, config.drain_timeout_s)


def _identity(role: Role, config: NodeConfig) -> Node:
    name = config.name or f"{role}-{socket.gethostname()}-{os.getpid()}"
    return Node(name, time.time_ns())
