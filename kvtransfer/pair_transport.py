"""`PairTransport`: a `Transport` of elastic two-rank pairs, one per direction and peer rank.

sender's pool ──gather──► staging ──pair (shm, gloo, NCCL)──► staging ──scatter──► receiver's pool
            headers, and the end of a peer, on a TCP socket beside the pair

A link gathers one message while others travel, and its other end scatters one while others arrive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

import msgspec
from torch import Tensor

from kvtransfer.backends.pair import PairBackend
from kvtransfer.links.counts import LinkCounts
from kvtransfer.links.handshake import VERSION, Hello, Place
from kvtransfer.links.inbox import Inbox
from kvtransfer.links.incoming import IncomingLink, ReceivingEnd
from kvtransfer.links.layer_stream import LayerStream, event_after, let_go, push_to_all
from kvtransfer.links.listener import Listener
from kvtransfer.links.outgoing import OutgoingLink, SendingEnd
from kvtransfer.links.sending import Frame, PageSend
from kvtransfer.pages.layout import WHOLE, Shard, divides, frames_of_pages
from kvtransfer.pages.staging import PageRows
from kvtransfer.transport import LinkStats, OnDone, OnProgress, PageStream
from protocol.ids import Attempt, Node
from protocol.layout import KVLayout

IDLE_CLOSE_S = 300.0
WINDOWS_PER_FRAME = 2
"""A frame of complete pages is so long: enough to hide its announcement, short enough for others
to come between."""
AVOID_BACKEND_S = 60.0
"""How long a link does without a backend that could make no pair, if there is another."""
MAX_REMEMBERED_PEERS = 256


class PairTransport:
    """`pool` is [layers, pages, 2, page_size, kv_heads of this rank, head_dim]; `layout` is that of
    the whole model. `backends`: best first. One thread calls `stream`, `send` and `cancel`."""

    def __init__(
        self,
        pool: Tensor,
        layout: KVLayout,
        node: Node,
        fingerprint: str,
        backends: Sequence[PairBackend],
        place: Place,
        shard: Shard = WHOLE,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise_host: str = "",
        with_checksums: bool = False,
        min_send_bytes: int = 0,
        idle_close_s: float = IDLE_CLOSE_S,
    ) -> None:
        """`min_send_bytes`: layers of a stream are sent together until they have so much; 0: what
        the best backend wants."""
        heads = shard.heads(layout.num_kv_heads)
        assert divides(shard.num_ranks, layout.num_kv_heads)
        assert pool.shape[4] == len(heads), "the pool is not this rank's"
        self._pool = pool
        self._layout = layout
        self._heads = heads
        self._own_layout = msgspec.structs.replace(layout, num_kv_heads=len(heads))
        self._shard = shard
        self._backends: Mapping[str, PairBackend] = {b.name: b for b in backends}
        self._max_frame_bytes = WINDOWS_PER_FRAME * backends[0].window * backends[0].message_bytes
        self._min_send_bytes = min_send_bytes or backends[0].min_send_bytes
        self._with_checksums = with_checksums
        self._idle_close_s = idle_close_s
        self._hello = Hello(
            VERSION, node, layout, fingerprint, shard, shard, place, list(self._backends)
        )
        self._inbox = Inbox(layout.num_layers, len(heads))
        self._streams: list[LayerStream] = []
        self._lock = threading.Lock()
        self._side_lock = threading.Lock()
        """Of what links change: the counts, and the backends to be avoided."""
        self._links: list[OutgoingLink] = []
        """Whose threads have not ended."""
        self._outgoing: dict[str, OutgoingLink] = {}
        """By address: those in use."""
        self._avoided: dict[tuple[str, str], float] = {}
        """(address, backend) → until when."""
        self._sent: dict[str, LinkCounts] = {}
        self._received: dict[str, LinkCounts] = {}
        end = ReceivingEnd(
            hello=self._hello,
            backends=self._backends,
            rows_of=self._rows_of,
            max_pages=pool.shape[1],
            inbox=self._inbox,
            counts_of=lambda peer: self._counts(self._received, peer),
        )
        self._listener = Listener(host, port, lambda c: IncomingLink(c, end).run())
        self.address = f"{advertise_host or host}:{self._listener.port}"

    def expect(
        self, transfer: Attempt, pages: Sequence[int], on_progress: OnProgress, on_done: OnDone
    ) -> None:
        self._inbox.expect(transfer, pages, event_after(self._pool), on_progress, on_done)

    def abort(self, transfer: Attempt) -> None:
        self._inbox.abort(transfer)

    def send(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> None:
        sending, ready = PageSend(transfer, on_done), event_after(self._pool)
        layout, links = self._own_layout, self._hold_links_to(peer)
        for shape in frames_of_pages(
            len(pages), offset, layout.num_layers, layout.page_bytes, self._max_frame_bytes
        ):
            first = shape.offset - offset
            some_pages = pages[first : first + shape.num_pages]
            push_to_all(links, Frame(sending, shape, some_pages, ready))
        sending.complete()
        let_go(links)

    def stream(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> PageStream:
        layer_bytes = self._own_layout.layer_page_bytes * len(pages)
        stream = LayerStream(
            links=self._hold_links_to(peer),
            sending=PageSend(transfer, on_done),
            pool=self._pool,
            pages=pages,
            offset=offset,
            min_layers=max(1, -(-self._min_send_bytes // layer_bytes)),
        )
        self._streams = [s for s in self._streams if not s.ended] + [stream]
        return stream

    def cancel(self, transfer: Attempt) -> None:
        for stream in self._streams:
            if stream.transfer == transfer:
                stream.give_up("it was cancelled")
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cancel(transfer)

    def links(self) -> list[LinkStats]:
        page_bytes = self._own_layout.page_bytes
        with self._side_lock:
            sent, received = list(self._sent.items()), list(self._received.items())
        return [counts.stats(peer, "out", page_bytes) for peer, counts in sent] + [
            counts.stats(peer, "in", page_bytes) for peer, counts in received
        ]

    def close(self) -> None:
        for stream in self._streams:
            stream.give_up("the transport was closed")
        with self._lock:
            links = list(self._links)
        for link in links:
            link.close()
        self._listener.close()
        for link in links:
            link.join()

    def _hold_links_to(self, peer: Sequence[str]) -> list[OutgoingLink]:
        """To every rank of the peer that needs heads of this one; each to be let go."""
        links = []
        for rank, address in enumerate(peer):
            to = Shard(rank, len(peer))
            heads = self._shard.heads_for(to, self._layout.num_kv_heads)
            if heads:
                links.append(self._hold_link_to(address, to, heads))
        return links

    def _hold_link_to(self, address: str, to: Shard, heads: range) -> OutgoingLink:
        """The link in use, or a new one after its end."""
        with self._lock:
            link = self._outgoing.get(address)
            if link is not None and link.hold():
                return link
            if link is not None:
                link.close()
            self._links = [other for other in self._links if other.is_alive]
            hello = msgspec.structs.replace(
                self._hello, to=to, backends=self._backends_for(address)
            )
            end = SendingEnd(
                hello=hello,
                backends=self._backends,
                rows=self._rows_of(heads),
                with_checksums=self._with_checksums,
                idle_close_s=self._idle_close_s,
                counts_of=lambda peer: self._counts(self._sent, peer),
                on_backend_failed=lambda backend: self._avoid(address, backend),
            )
            link = OutgoingLink(address, end)
            link.hold()
            self._links.append(link)
            self._outgoing = {a: o for a, o in self._outgoing.items() if o.is_alive}
            self._outgoing[address] = link
            return link

    def _rows_of(self, heads: range) -> PageRows:
        """The pool, cut to some of this rank's heads, as the whole model counts them."""
        first = self._heads.start
        return PageRows(self._pool, slice(heads.start - first, heads.stop - first))

    def _counts(self, counts: dict[str, LinkCounts], peer: str) -> LinkCounts:
        with self._side_lock:
            if peer not in counts and len(counts) >= MAX_REMEMBERED_PEERS:
                forgotten = next((p for p, c in counts.items() if not c.is_open), peer)
                counts.pop(forgotten, None)
            return counts.setdefault(peer, LinkCounts())

    def _avoid(self, address: str, backend: str) -> None:
        with self._side_lock:
            self._avoided[address, backend] = time.monotonic() + AVOID_BACKEND_S

    def _backends_for(self, address: str) -> list[str]:
        """Without those that failed lately, unless nothing is left."""
        now = time.monotonic()
        with self._side_lock:
            self._avoided = {key: until for key, until in self._avoided.items() if now < until}
            backends = [b for b in self._backends if (address, b) not in self._avoided]
        return backends or list(self._backends)
