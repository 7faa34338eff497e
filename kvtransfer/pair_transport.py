"""`PairTransport`: a `Transport` whose links are two-rank pairs, made on demand and made anew.

sender's pool ──gather──► staging ──pair (shm, gloo, NCCL)──► staging ──scatter──► receiver's pool
            a TCP socket beside the pair carries the headers and tells when a peer ends

There is one link per direction and peer rank, so a broken peer disturbs no other. A link gathers
one message while others travel, and its other end scatters one while others arrive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

import msgspec
from torch import Tensor

from kvtransfer.backends.pair import PairBackend
from kvtransfer.links.counts import LinkCounts
from kvtransfer.links.handshake import Hello, Place
from kvtransfer.links.inbox import Inbox
from kvtransfer.links.incoming import IncomingLink, ReceivingEnd
from kvtransfer.links.layer_stream import LayerStream, event_after, let_go, push_to_all
from kvtransfer.links.listener import Listener
from kvtransfer.links.outgoing import OutgoingLink, SendingEnd
from kvtransfer.links.peer_health import PeerHealth
from kvtransfer.links.sending import Frame, PageSend
from kvtransfer.links.streams import ExpectedStreams
from kvtransfer.pages.copy_streams import CopyStreams
from kvtransfer.pages.frame_plan import frames_of_pages
from kvtransfer.pages.layout import WHOLE, Shard, divides
from kvtransfer.pages.staging import PageRows
from kvtransfer.pages.transfer_rows import TransferRows
from kvtransfer.transport import LinkStats, OnDone, OnProgress, PageStream
from protocol.ids import Attempt, Node
from protocol.layout import KVLayout
from protocol.trust.refusals import Refusals
from protocol.trust.secrets import ClusterSecrets
from protocol.trust.versions import OURS

IDLE_CLOSE_S = 300.0
"""A link that has had nothing to send for this long is closed; over NCCL each holds GPU memory."""
WINDOWS_PER_FRAME = 2
"""The longest frame of complete pages, in windows of messages. It is long enough to hide its own
announcement, and short enough that the frames of other transfers get in between."""
AVOID_BACKEND_S = 60.0
"""After a backend could not make a pair with a peer, links to that peer use other backends for
this long, if there are any."""
MAX_REMEMBERED_PEERS = 256
"""Peers with counts, per direction. Beyond that, the counts of one without a link are dropped."""


class PairTransport:
    """The transport of one rank. One thread, the node's, calls `stream`, `send` and `cancel`."""

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
        health_address: str = "",
        secrets: ClusterSecrets | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        """Listens on `host` and `port` (0: any free one). Raises DataPortInUse.

        `pool` is [layers, pages, …], of which each page in a layer is one run of bytes; it has the
        KV heads of this rank, and `layout` is that of the whole model. `backends` are ordered, the
        best first. The layers of a stream are gathered until they have `min_send_bytes`; 0 lets
        them have up to a message of the best backend, the last ones what it asks for at least.
        Peers ask at `health_address`, if there is one, how this node does when a link is silent.
        With `secrets` both ends of every connection prove that they know one of them; those that do
        not are counted in `refusals`.
        """
        heads = shard.heads(layout.num_kv_heads)
        assert divides(shard.num_ranks, layout.num_kv_heads)
        self._pool = pool
        self._layout = layout
        self._heads = heads
        self._copy_streams = CopyStreams.of(pool.device)
        self._own_layout = msgspec.structs.replace(layout, num_kv_heads=len(heads))
        own_bytes = pool.shape[0] * pool.shape[1] * self._own_layout.layer_page_bytes
        assert pool.nbytes == own_bytes, "the pool is not this rank's"
        self._shard = shard
        self._backends: Mapping[str, PairBackend] = {b.name: b for b in backends}
        self._message_bytes = backends[0].message_bytes
        self._max_frame_bytes = WINDOWS_PER_FRAME * backends[0].window * self._message_bytes
        self._min_send_bytes = min_send_bytes or backends[0].min_send_bytes
        self._max_send_bytes = min_send_bytes or self._message_bytes
        self._with_checksums = with_checksums
        self._idle_close_s = idle_close_s
        self._secrets = secrets
        self.refusals = refusals or Refusals()
        self._hello = Hello(
            version=OURS.newest,
            node=node,
            layout=layout,
            fingerprint=fingerprint,
            shard=shard,
            to=shard,
            place=place,
            backends=list(self._backends),
            health_address=health_address,
            oldest_version=OURS.oldest,
            release=OURS.release,
        )
        self._inbox = Inbox(layout.num_layers, len(heads))
        self._streams: list[LayerStream] = []
        self._lock = threading.Lock()
        """Guards the links. Held while one is made, which starts a thread."""
        self._side_lock = threading.Lock()
        """Guards what the links' own threads change: the counts, and the backends to avoid."""
        self._links: list[OutgoingLink] = []
        """All links whose threads have not ended; several to one address while old ones end."""
        self._outgoing: dict[str, OutgoingLink] = {}
        """The newest link to each address, the only one that takes frames."""
        self._avoided: dict[tuple[str, str], float] = {}
        """For an (address, backend): the time, of `time.monotonic`, until which it is avoided."""
        self._peers: dict[str, PeerHealth] = {}
        """Where the peers that were met tell how they do, by the addresses of their ranks."""
        self._sent: dict[str, LinkCounts] = {}
        self._received: dict[str, LinkCounts] = {}
        self._is_closing = threading.Event()
        end = ReceivingEnd(
            hello=self._hello,
            backends=self._backends,
            rows_of=self._rows_of,
            max_pages=pool.shape[1],
            inbox=self._inbox,
            counts_of=lambda peer: self._counts(self._received, peer),
            on_met=self._met,
            refusals=self.refusals,
            streams=ExpectedStreams(),
            is_closing=self._is_closing,
            secrets=secrets,
        )
        self._listener = Listener(host, port, lambda c: IncomingLink(c, end).run())
        self.address = f"{advertise_host or host}:{self._listener.port}"

    def expect(
        self, transfer: Attempt, pages: Sequence[int], on_progress: OnProgress, on_done: OnDone
    ) -> None:
        # The event keeps links from writing into pages that a step under way still reads.
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
        rows = TransferRows(pages, offset)
        # All frames go out before `complete`: till then `on_done` cannot be called early by a
        # frame that ends while others are still being queued.
        for shape in frames_of_pages(
            len(pages),
            offset,
            layout.num_layers,
            layout.page_bytes,
            self._message_bytes,
            self._max_frame_bytes,
        ):
            push_to_all(links, Frame(sending, shape, rows, ready))
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
            max_layers=max(1, self._max_send_bytes // layer_bytes),
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
        # In pages of this rank's pool: a tensor-parallel rank has only its share of each page.
        page_bytes = self._own_layout.page_bytes
        with self._side_lock:
            sent, received = list(self._sent.items()), list(self._received.items())
        return [counts.stats(peer, "out", page_bytes) for peer, counts in sent] + [
            counts.stats(peer, "in", page_bytes) for peer, counts in received
        ]

    def close(self) -> None:
        self._is_closing.set()
        for stream in self._streams:
            stream.give_up("the transport was closed")
        with self._lock:
            links = list(self._links)
        for link in links:
            link.close()
        self._listener.close()
        # Joined last, so that all of them end at the same time and not one after the other.
        for link in links:
            link.join()

    def _hold_links_to(self, peer: Sequence[str]) -> list[OutgoingLink]:
        """Returns a link to every rank of the peer that needs KV heads of this rank.

        The caller must call `let_go` on each of them.
        """
        links = []
        for rank, address in enumerate(peer):
            to = Shard(rank, len(peer))
            heads = self._shard.heads_for(to, self._layout.num_kv_heads)
            if heads:
                links.append(self._hold_link_to(address, to, heads))
        return links

    def _hold_link_to(self, address: str, to: Shard, heads: range) -> OutgoingLink:
        """Returns the link in use to `address`, or a new one if that is over. The caller must
        call `let_go` on it. `heads` are those that the peer's shard `to` gets from this rank."""
        with self._lock:
            link = self._outgoing.get(address)
            if link is not None and link.hold():
                return link
            if link is not None:
                # Its peer has hung up and its thread may not know yet: it must not be used again.
                link.close()
            self._links = [other for other in self._links if other.is_alive]
            hello = msgspec.structs.replace(
                self._hello,
                to=to,
                backends=self._backends_for(address),
                address=self.address,
            )
            end = SendingEnd(
                hello=hello,
                backends=self._backends,
                rows=self._rows_of(heads),
                with_checksums=self._with_checksums,
                idle_close_s=self._idle_close_s,
                counts_of=lambda peer: self._counts(self._sent, peer),
                on_backend_failed=lambda backend: self._avoid(address, backend),
                peer_health=self._peers.get(address),
                on_met=lambda health: self._met(address, health),
                secrets=self._secrets,
            )
            link = OutgoingLink(address, end)
            link.hold()
            self._links.append(link)
            self._outgoing = {a: o for a, o in self._outgoing.items() if o.is_alive}
            self._outgoing[address] = link
            return link

    def _rows_of(self, heads: range) -> PageRows:
        """Returns the rows of the pool, cut to `heads` of this rank. The whole model counts the
        KV heads in `heads`; the pool counts its own from 0."""
        first = self._heads.start
        own = range(heads.start - first, heads.stop - first)
        return PageRows(self._pool, self._own_layout, own, self._copy_streams)

    def _counts(self, counts: dict[str, LinkCounts], peer: str) -> LinkCounts:
        """Returns the counts of `peer` out of `counts` (sent or received); makes them if it is new,
        in place of those of a peer without a link if there are too many peers."""
        with self._side_lock:
            if peer not in counts and len(counts) >= MAX_REMEMBERED_PEERS:
                forgotten = next((p for p, c in counts.items() if not c.is_open), peer)
                counts.pop(forgotten, None)
            return counts.setdefault(peer, LinkCounts())

    def _met(self, address: str, health: PeerHealth) -> None:
        """Remembers where a peer tells how it does; forgets another one if there are too many."""
        with self._side_lock:
            self._peers.pop(address, None)
            if len(self._peers) >= MAX_REMEMBERED_PEERS:
                del self._peers[next(iter(self._peers))]
            self._peers[address] = health

    def _avoid(self, address: str, backend: str) -> None:
        with self._side_lock:
            self._avoided[address, backend] = time.monotonic() + AVOID_BACKEND_S

    def _backends_for(self, address: str) -> list[str]:
        """Returns the names of the backends for a link to `address`, best first: those that made
        no pair with it lately are left out, unless no other is left."""
        now = time.monotonic()
        with self._side_lock:
            self._avoided = {key: until for key, until in self._avoided.items() if now < until}
            backends = [b for b in self._backends if (address, b) not in self._avoided]
        return backends or list(self._backends)
