"""Puts one node process together from its settings, and runs it until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch

from engine.build import EngineOptions, load_model_runner
from engine.cache import PrefixCache
from engine.kv_cache import num_pages_that_fit
from engine.runner import ModelRunner
from kvtransfer.backends import make_backends
from kvtransfer.pair_transport import PairTransport
from kvtransfer.place import place_of
from node.config import NodeConfig
from node.heartbeat import Heartbeats
from node.instructions import Scheduler
from node.publisher import OwnershipPublisher
from node.resources import memory_bytes
from node.shell import NodeShell
from protocol.channel import Channel
from protocol.config import ConfigError, describe
from protocol.hashing import PageHasher
from protocol.hosts import advertised_host
from protocol.ids import Node, Role
from protocol.layout import KVLayout
from protocol.messages import NodeInfo

log = logging.getLogger(__name__)

CPU_POOL_TOKENS = 131_072
"""A CPU node shares its memory with others; it takes no larger pool unless it is told to."""
PROGRESS_S = 1.0
STALL_S = 120.0
"""A step that takes longer than this is taken for a hang."""

SchedulerFactory = Callable[[Node, NodeInfo, PrefixCache, PageHasher], Scheduler]


def run_node(role: Role, config: NodeConfig, make_scheduler: SchedulerFactory) -> None:
    """Serves until SIGTERM or SIGINT. Raises ConfigError and the engine's model errors."""
    torch.set_num_threads(config.cpu_threads)
    node = _identity(role, config)
    device = _device(config.device)
    if config.kv_backend == "nccl" and device.type != "cuda":
        raise ConfigError("--kv-backend nccl needs a CUDA device; use --kv-backend auto on CPUs")
    runner = _load(config, device)
    host = advertised_host(config.host, config.advertise_host, config.redis_url)
    channel = Channel(config.host, config.control_port, host)
    transport = PairTransport(
        pool=runner.kv_cache.pool,
        layout=runner.layout,
        node=node,
        fingerprint=runner.fingerprint,
        backends=make_backends(config.kv_backend, host, device),
        place=place_of(device),
        host=config.host,
        port=config.data_port,
        advertise_host=host,
        with_checksums=config.kv_checksum,
        min_send_bytes=config.kv_min_send_bytes,
    )
    info = NodeInfo(
        node=node,
        role=role,
        control_address=channel.address,
        data_addresses=(transport.address,),
        layout=runner.layout,
        model_fingerprint=runner.fingerprint,
        num_pages=runner.kv_cache.num_pages,
        max_running_requests=config.max_running_requests,
        max_queued_requests=config.max_queued_requests,
        device=str(device),
    )
    log.info("%s node settings: %s", role, describe(config))
    cache = PrefixCache(info.num_pages)
    hasher = PageHasher(runner.fingerprint, runner.layout)
    scheduler = make_scheduler(node, info, cache, hasher)
    publisher = OwnershipPublisher(
        config.redis_url, info, config.lease_s, on_replaced=lambda: replaced()
    )
    heartbeats = Heartbeats(
        channel.outgoing(), info, config.lease_s, STALL_S, lambda: publisher.coordinators
    )
    shell = NodeShell(node, channel, scheduler, cache, runner, transport, publisher, heartbeats)

    def replaced() -> None:
        log.error("a newer process registered as %r; this one stops", node.name)
        shell.stop()

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
        transport.close()
        channel.close()


def _identity(role: Role, config: NodeConfig) -> Node:
    name = config.name or f"{role}-{socket.gethostname()}-{os.getpid()}"
    return Node(name, time.time_ns())


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name} is no device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device is {name}, but torch sees no CUDA device; use --device cpu")
    return device


def _load(config: NodeConfig, device: torch.device) -> ModelRunner:
    next_report = time.monotonic() + PROGRESS_S

    def progress(done_bytes: int, total_bytes: int) -> None:
        nonlocal next_report
        if time.monotonic() >= next_report or done_bytes == total_bytes:
            next_report = time.monotonic() + PROGRESS_S
            percent = 100 * done_bytes // max(1, total_bytes)
            log.info("loading weights: %d %% of %.1f MB", percent, total_bytes / 1e6)

    def num_pages(layout: KVLayout) -> int:
        return _pool_pages(config, layout, device)

    options = EngineOptions(dtype=config.dtype, page_size=config.page_size)
    return load_model_runner(Path(config.model_path), options, num_pages, device, progress=progress)


def _pool_pages(config: NodeConfig, layout: KVLayout, device: torch.device) -> int:
    """Size of the KV pool, called when the weights are loaded."""
    if config.max_total_tokens:
        return layout.num_pages(config.max_total_tokens)
    available, total = memory_bytes(device)
    if device.type == "cpu":  # shared with everything else on this host
        budget = available * config.mem_fraction_static * config.memory_share
        limit = layout.num_pages(CPU_POOL_TOKENS)
    else:
        kept_free = total * (1 - config.mem_fraction_static)
        budget = min(available - kept_free, (total - kept_free) * config.memory_share)
        limit = int(total) // layout.page_bytes
    num_pages = min(num_pages_that_fit(layout, int(budget)), limit)
    if num_pages < 1:
        raise ConfigError(
            f"there is no memory for a KV page of {layout.page_bytes} bytes on {device}; "
            "raise --mem-fraction-static, give nodes that share a device their --memory-share "
            "(as 0.5), or free some memory"
        )
    return num_pages
