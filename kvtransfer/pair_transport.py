"""`PairTransport`: a `Transport` of elastic two-rank pairs, one per direction and peer.

sender's pool ──gather──► staging ──pair (gloo, NCCL)──► staging ──scatter──► receiver's pool
              headers, and the end of a peer, on a TCP socket beside the pair
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from kvtransfer.counts import LinkCounts
from kvtransfer.gloo import GlooBackend
from kvtransfer.handshake import VERSION, FrameHeader, Hello
from kvtransfer.inbox import Inbox
from kvtransfer.incoming import Listener, checksum
from kvtransfer.layout import frames
from kvtransfer.nccl import NcclBackend
from kvtransfer.outgoing import Frame, OutgoingLink
from kvtransfer.pages import gather
from kvtransfer.pair import PairBackend
from kvtransfer.transport import LinkStats, OnDone
from protocol.ids import Attempt, Node
from protocol.layout import KVLayout

OPERATION_TIMEOUT_S = 3.0
IDLE_CLOSE_S = 300.0


class PairTransport:
    """`pool` is [layers, pages, 2, page_size, kv_heads, head_dim] of `layout`."""

    def __init__(
        self,
        pool: Tensor,
        layout: KVLayout,
        node: Node,
        fingerprint: str,
        backend: PairBackend,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise_host: str = "",
        with_checksum: bool = False,
        idle_close_s: float = IDLE_CLOSE_S,
    ) -> None:
        self._pool = pool
        self._layout = layout
        self._backend = backend
        self._with_checksum = with_checksum
        self._idle_close_s = idle_close_s
        self._hello = Hello(VERSION, node, layout, fingerprint, backend.name)
        self._inbox = Inbox(pool)
        self._lock = threading.Lock()
        self._outgoing: dict[str, OutgoingLink] = {}
        self._sent: dict[str, LinkCounts] = {}
        self._received: dict[str, LinkCounts] = {}
        self._listener = Listener(
            host, port, self._hello, backend, pool, self._inbox, self._counts_of
        )
        self.address = f"{advertise_host or host}:{self._listener.port}"

    def expect(self, transfer: Attempt, pages: Sequence[int], on_done: OnDone) -> None:
        self._inbox.expect(transfer, pages, on_done)

    def abort(self, transfer: Attempt) -> None:
        self._inbox.abort(transfer)

    def send(
        self,
        peer_address: str,
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> None:
        link = self._link_to(peer_address)  # one for all frames: a later one may miss some
        parts = list(frames(pages, offset, self._layout.page_bytes))
        for i, (start, some_pages) in enumerate(parts):
            staging = gather(self._pool, some_pages, self._backend.staging_device)
            crc = checksum(staging) if self._with_checksum else None
            header = FrameHeader(transfer, start, len(some_pages), crc)
            is_last = i == len(parts) - 1
            frame = Frame(header, staging, on_done if is_last else None)
            if not link.push(frame, OPERATION_TIMEOUT_S):
                on_done(f"{peer_address} does not take pages fast enough, or is gone")
                return

    def links(self) -> list[LinkStats]:
        with self._lock:
            sent, received = list(self._sent.items()), list(self._received.items())
        return [counts.stats(peer, "out") for peer, counts in sent] + [
            counts.stats(peer, "in") for peer, counts in received
        ]

    def close(self) -> None:
        with self._lock:
            links = list(self._outgoing.values())
        for link in links:
            link.close()
        self._listener.close()
        for link in links:
            link.join()

    def _link_to(self, peer_address: str) -> OutgoingLink:
        """The link in use, or a new one after its end."""
        with self._lock:
            link = self._outgoing.get(peer_address)
            if link is None or not link.usable:
                if link is not None:
                    link.close()
                counts = self._sent.setdefault(peer_address, LinkCounts())
                link = OutgoingLink(
                    peer_address, self._hello, self._backend, counts, self._idle_close_s
                )
                self._outgoing[peer_address] = link
            return link

    def _counts_of(self, peer: str) -> LinkCounts:
        with self._lock:
            return self._received.setdefault(peer, LinkCounts())


def make_backend(name: str, host: str, device: torch.device) -> PairBackend:
    """`name`: gloo or nccl. `host`: this node's own address."""
    if name == "nccl":
        return NcclBackend(device, OPERATION_TIMEOUT_S)
    return GlooBackend(host, OPERATION_TIMEOUT_S)
