"""`Engine` computes and moves the pages of one node, be it one rank or several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from engine.parallel import SOLO, MeetingPoint, connect
from kvtransfer.transport import Transport
from node.config import NodeConfig
from node.devices import devices_of
from node.ranks.grace import exit_at_last
from node.ranks.operations import Operations
from node.ranks.rank import Rank, build_rank
from node.ranks.runner import ParallelRunner
from node.ranks.transport import ParallelTransport
from node.ranks.wire.pipe import RankLost
from node.ranks.worker import MEETING_TIMEOUT_S
from node.ranks.workers import Workers
from node.shell.runner import Runner
from protocol.ids import Node
from protocol.layout import KVLayout
from protocol.trust.refusals import Refusals

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
"""The ranks of a node are processes of one host."""


@dataclass(frozen=True)
class Engine:
    """What computes and moves the pages of a node, and what the node tells others of that."""

    runner: Runner
    transport: Transport
    data_addresses: tuple[str, ...]
    layout: KVLayout
    """The layout of the whole model's pages, whatever the number of ranks: nodes of different sizes
    exchange pages and know the same hashes."""
    fingerprint: str
    num_pages: int
    context_length: int
    """The model's own limit for a sequence."""
    vocab_size: int
    device: str
    """The device of rank 0."""
    when_lost: Callable[[Callable[[str], None]], None] = lambda _: None
    """Registers a function that is called with the reason when a rank is lost and this node cannot
    go on."""
    raise_if_lost: Callable[[], None] = lambda: None
    """Raises RankLost once a rank is lost."""


@contextmanager
def start_engine(
    config: NodeConfig, node: Node, health_address: str, refusals: Refusals
) -> Iterator[Engine]:
    """Builds all ranks, those in other processes too, and ends them at the exit. Peers ask at
    `health_address` how this node does. What is refused of them here is counted in `refusals`.

    Raises ConfigError, the engine's model errors, and RankLost if a rank does not start.
    """
    devices = devices_of(config.device, config.tensor_parallel_size)
    if len(devices) == 1:
        rank = build_rank(
            config, node, devices[0], SOLO, lambda num_pages: num_pages, health_address, refusals
        )
        yield _engine(rank, rank.runner, rank.transport, (rank.transport.address,))
        return
    meeting_point = MeetingPoint(HOST, MEETING_TIMEOUT_S)
    workers = Workers.start(config, node, devices, meeting_point.address, health_address)
    workers.when_lost(lambda _: exit_at_last())
    try:
        address = meeting_point.address
        yield _parallel_engine(config, node, devices, address, workers, health_address, refusals)
    finally:
        workers.close()


def _parallel_engine(
    config: NodeConfig,
    node: Node,
    devices: Sequence[torch.device],
    address: str,
    workers: Workers,
    health_address: str,
    refusals: Refusals,
) -> Engine:
    operations = Operations()
    try:
        parallel = connect(0, len(devices), devices[0], address, MEETING_TIMEOUT_S)
    except RuntimeError as error:
        workers.raise_if_lost()
        raise RankLost(
            f"the {len(devices)} ranks of {node.name} did not meet at {address} within "
            f"{MEETING_TIMEOUT_S:g} s ({error}); start the node again"
        ) from error
    rank = build_rank(
        config,
        node,
        devices[0],
        operations.counted(parallel),
        workers.agree,
        health_address,
        refusals,
    )
    addresses = (rank.transport.address, *workers.addresses())
    transport = ParallelTransport(rank.transport, workers.tell, addresses, rank.layout)

    workers.listen(transport.report)
    workers.when_lost(transport.lose)
    runner = ParallelRunner(rank.runner, workers, operations)
    return _engine(rank, runner, transport, addresses, workers.when_lost, workers.raise_if_lost)


def _engine(
    rank: Rank,
    runner: Runner,
    transport: Transport,
    data_addresses: tuple[str, ...],
    when_lost: Callable[[Callable[[str], None]], None] = lambda _: None,
    raise_if_lost: Callable[[], None] = lambda: None,
) -> Engine:
    return Engine(
        runner=runner,
        transport=transport,
        data_addresses=data_addresses,
        layout=rank.layout,
        fingerprint=rank.runner.fingerprint,
        num_pages=rank.runner.kv_cache.num_pages,
        context_length=rank.runner.config.context_length,
        vocab_size=rank.runner.config.vocab_size,
        device=str(rank.runner.device),
        when_lost=when_lost,
        raise_if_lost=raise_if_lost,
    )
