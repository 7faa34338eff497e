"""A node that is the product's own but for its engine and its links, which take modelled time.

No KV moves and no torch is imported. The answer is always the token ANSWER, again and again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec

from benchmarks.clusters.modelled_engine import ModelledRunner, Pace
from benchmarks.clusters.modelled_transport import ModelledTransport, TappedChannel
from decode.answers import Answers
from engine.cache.prefix_cache import PrefixCache
from node.core.core import NodeCore
from node.core.scheduler import Scheduler, SchedulerLimits
from node.core.work import WorkFactory
from node.liveness.heartbeats import Heartbeats
from node.liveness.process import CompanionProcess
from node.shell.publisher import OwnershipPublisher
from node.shell.shell import NodeShell
from prefill.handovers import Handovers
from protocol.channel import Channel
from protocol.hashing import PageHasher
from protocol.ids import Addresses, Role
from protocol.messages import Load, NodeInfo

STALL_S = 30.0


@dataclass(frozen=True)
class Paces:
    """What takes how long on a modelled node."""

    prefill: Pace
    fetch: Pace


class ModelledNode:
    """One process of a modelled cluster."""

    def __init__(
        self,
        role: Role,
        info: NodeInfo,
        channel: Channel,
        redis_url: str,
        lease_s: float,
        paces: Paces,
    ) -> None:
        self._channel = channel
        self._publisher = OwnershipPublisher(redis_url, info, lease_s, self.stop)
        self._companion = CompanionProcess(info.node, "127.0.0.1", 0, redis_url, lease_s, STALL_S)
        heartbeats = Heartbeats(
            self._companion.board,
            info,
            lambda: self._publisher.coordinators,
            self._companion.tell_news,
        )
        transport = ModelledTransport(paces.fetch, info.layout.page_size)
        self._shell = NodeShell(
            core_of(role, info),
            TappedChannel(channel, transport),
            transport,
            ModelledRunner(paces.prefill),
            self._publisher,
            KnownRates(heartbeats, info, paces),
            time.monotonic,
        )

    def run(self) -> None:
        """Serves until `stop`."""
        self._publisher.start()
        try:
            self._shell.run()
        finally:
            self._companion.close()
            self._publisher.close()
            self._channel.close()

    def stop(self) -> None:
        """Ends `run`. May be called from any thread and from a signal handler."""
        self._shell.stop()


def core_of(role: Role, info: NodeInfo) -> NodeCore:
    """Returns the core of such a node. A step has one page of one prompt, so prompts end in the
    order in which they began, each when the model says."""
    cache = PrefixCache(info.num_pages, info.layout.page_size)
    limits = SchedulerLimits(
        chunk_tokens=info.layout.page_size,
        max_running=info.max_running_requests,
        max_waiting=info.max_queued_requests,
    )
    kinds: list[WorkFactory] = [Answers, Handovers]
    hasher = PageHasher(info.model_fingerprint, info.layout)
    addresses = Addresses(info.control_address, info.data_addresses)
    scheduler = Scheduler(role, info.node, addresses, cache, hasher, limits, kinds)
    return NodeCore(info.node, cache, scheduler)


@dataclass(frozen=True)
class KnownRates:
    """Heartbeats that tell the router the rates of the model, not those measured so far."""

    heartbeats: Heartbeats
    info: NodeInfo
    paces: Paces

    def tell_draining(self) -> None:
        self.heartbeats.tell_draining()

    def update(self, load: Load) -> None:
        layout, paces = self.info.layout, self.paces
        known = msgspec.structs.replace(
            load,
            prefill_tokens_per_s=paces.prefill.tokens_per_s,
            step_s=paces.prefill.base_s,
            link_bytes_per_s=paces.fetch.tokens_per_s * layout.page_bytes / layout.page_size,
        )
        self.heartbeats.update(known)
