"""`build_rank` makes one rank of a node: its part of the model and of the KV pool, its
transport."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from engine.build import load_model_runner
from engine.parallel import TensorParallel
from engine.steps.runner import ModelRunner
from kvtransfer.backends.choice import make_backends
from kvtransfer.pages.layout import Shard
from kvtransfer.pair_transport import PairTransport
from kvtransfer.place import place_of
from node.config import NodeConfig
from node.pool_size import pool_pages
from node.progress import weights_progress
from protocol.config import ConfigError
from protocol.hosts import advertised_host
from protocol.ids import Node
from protocol.layout import KVLayout
from protocol.trust.refusals import Refusals
from protocol.trust.secrets import ClusterSecrets

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rank:
    """One rank of a node, ready to compute and to move pages."""

    runner: ModelRunner
    transport: PairTransport
    layout: KVLayout
    """The layout of the whole model's pages, of which this rank has some heads."""


def build_rank(
    config: NodeConfig,
    node: Node,
    device: torch.device,
    parallel: TensorParallel,
    agree: Callable[[int], int],
    health_address: str,
    refusals: Refusals,
) -> Rank:
    """Loads this rank's weights, makes its pool and opens its transport.

    `agree` takes the number of KV pages that this rank has room for, and returns the number that
    all ranks have. Peers ask at `health_address` how this node does. Raises ConfigError and the
    engine's model errors.
    """
    if config.kv_backend == "nccl" and device.type != "cuda":
        raise ConfigError("--kv-backend nccl needs a CUDA device; use --kv-backend auto on CPUs")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with weights_progress() if parallel.rank == 0 else nullcontext() as progress:
        runner = load_model_runner(
            Path(config.model_path),
            config,
            lambda own_layout: agree(pool_pages(config, own_layout, device)),
            device,
            parallel,
            progress,
        )
    log.info("attention: %s, in %s on %s", runner.attention.name, runner.layout.dtype, device)
    layout = msgspec.structs.replace(runner.layout, num_kv_heads=runner.config.num_kv_heads)
    host = advertised_host(config.host, config.advertise_host, config.redis_url)
    transport = PairTransport(
        pool=runner.kv_cache.storage,
        layout=layout,
        node=node,
        fingerprint=runner.fingerprint,
        backends=make_backends(config.kv_backend, host, device),
        place=place_of(device),
        shard=Shard(parallel.rank, parallel.size),
        host=config.host,
        port=config.data_port + parallel.rank if config.data_port else 0,
        advertise_host=host,
        with_checksums=config.kv_checksum,
        min_send_bytes=config.kv_min_send_bytes,
        idle_close_s=config.kv_idle_close_s,
        health_address=health_address,
        secrets=ClusterSecrets.of(config.cluster_secret, config.cluster_secret_file),
        refusals=refusals,
    )
    return Rank(runner, transport, layout)
