"""Which processes a peer consists of, and how a client asks them. Pure: nothing is started here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.serving.systems.asking import (
    RoutedSglangPairs,
    SglangPairs,
    SglangReplicas,
    System,
    VllmPairs,
    VllmReplicas,
)
from benchmarks.serving.systems.peer_commands import (
    PeerServer,
    router_of,
    sglang_server,
    vllm_server,
)
from benchmarks.serving.systems.peer_names import Peer
from protocol.config import ConfigError

SERVERS = {"sglang": sglang_server, "vllm": vllm_server}


@dataclass(frozen=True)
class PeerPlan:
    """All processes of a peer. Its router is started when all servers answer."""

    peer: Peer
    servers: tuple[PeerServer, ...]
    router: PeerServer | None = None

    @property
    def processes(self) -> tuple[PeerServer, ...]:
        """The servers, and the router if there is one."""
        return (*self.servers, self.router) if self.router else self.servers

    def system(self) -> System:
        """Returns how a client asks the router, or the servers where there is none."""
        is_sglang, num_prefill = self.peer.package == "sglang", self.peer.num_prefill
        urls = [server.url for server in ([self.router] if self.router else self.servers)]
        if is_sglang and num_prefill and self.router:
            return RoutedSglangPairs(self.router.url)
        if self.router or not num_prefill:
            return SglangReplicas(urls) if is_sglang else VllmReplicas(urls)
        prefills, decodes = self.servers[:num_prefill], urls[num_prefill:]
        if is_sglang:
            rooms = [(server.url, server.bootstrap_port) for server in prefills]
            return SglangPairs(rooms, decodes)
        return VllmPairs([server.url for server in prefills], decodes)


def plan_peer(
    peer: Peer, model: str, num_gpus: int, ports: Iterator[int], more_flags: Sequence[str] = ()
) -> PeerPlan:
    """Returns the processes of a peer. `ports` yields free ports; `more_flags` are given to every
    server. Raises ConfigError on a host without GPUs."""
    if not num_gpus:
        raise ConfigError(f"--peer {peer.name} needs a GPU, and none is visible")
    server_of = SERVERS[peer.package]
    servers = tuple(
        server_of(peer, server, model, ports, more_flags) for server in range(len(peer.ranks))
    )
    return PeerPlan(peer, servers, router_of(peer, servers, ports) if peer.has_router else None)
