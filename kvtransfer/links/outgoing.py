"""`OutgoingLink`: the sending end of a link to one rank of a peer, with a thread of its own.

The thread connects, greets, makes the pair, and sends frames until the link is closed, has been
idle for too long, or breaks. A link that is over stays so; its owner makes another one.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvtransfer.backends.pair import SENDER_RANK, Pair, PairBackend
from kvtransfer.links.challenge import prove_as_connecting
from kvtransfer.links.counts import LinkCounts, LinkMeter
from kvtransfer.links.handshake import (
    PAIR_TIMEOUT_S,
    PING_S,
    SILENCE_S,
    Bye,
    FrameHeader,
    Hello,
    Ping,
    Pong,
    Refused,
    Welcome,
    is_closed,
    receive_message,
    send_message,
)
from kvtransfer.links.peer_health import PeerHealth
from kvtransfer.links.sending import Frame
from kvtransfer.links.socket_store import SocketStore
from kvtransfer.links.streams import STREAM_KEY, StreamOf
from kvtransfer.pages.checksum import append_checksum
from kvtransfer.pages.layout import CHECKSUM_BYTES, Cut
from kvtransfer.pages.staging import PageRows, RowIndex
from kvtransfer.transport import LayoutMismatch, PeerLost
from protocol.ids import Attempt
from protocol.trust.secrets import ClusterSecrets

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2.0
READY_POLL_S = 0.0001
"""The pause between two looks whether a queued frame's pages are in the pool."""
ANNOUNCED_WINDOWS = 2
"""Frames are announced ahead of their messages until those fill this many windows, so that the
peer can post its receives. More would only make more frames impossible to cancel."""


@dataclass(frozen=True)
class SendingEnd:
    """What an outgoing link needs to know of its own side."""

    hello: Hello
    """The greeting to the peer."""
    backends: Mapping[str, PairBackend]
    rows: PageRows
    """The rows of the pool, cut to the KV heads that the peer's rank gets from this one."""
    with_checksums: bool
    """True if every message gets a checksum."""
    idle_close_s: float
    """The link ends when nobody has used it for so many seconds."""
    counts_of: Callable[[str], LinkCounts]
    """Returns the counts of a peer by its node name, or by its address before that is known."""
    on_backend_failed: Callable[[str], None]
    """Is called with the name of a backend that could not make the pair."""
    peer_health: PeerHealth | None
    """Where the peer tells how it does, if it has been met before."""
    on_met: Callable[[PeerHealth], None]
    """Is called once the peer has told that."""
    secrets: ClusterSecrets | None = None
    """What the peer must know, and we prove to know; None: nothing is asked."""


@dataclass(eq=False)
class _Announced:
    """A frame that the peer knows of, and how much of it has been sent."""

    frame: Frame
    index: RowIndex | None = None
    """Where the frame's rows lie in the pool; None until its first message is sent."""
    num_sent_rows: int = 0


class OutgoingLink:
    """Sends frames in the order in which they are pushed and become ready.

    When the link fails, all its frames end with the reason and `closed` becomes True. Every method
    may be called from any thread; those with an underscore run on the link's own.
    """

    def __init__(self, peer_address: str, end: SendingEnd) -> None:
        self._peer_address = peer_address
        self._end = end
        self._counts: LinkCounts | None = None
        self._num_users = 0
        """How many sends and streams hold the link, see `hold`."""
        self._frames: deque[Frame] = deque()
        """Frames that the peer does not know of yet; these can be cancelled."""
        self._under_way: deque[tuple[int, Frame | None]] = deque()
        """For each message that is being sent: its bytes, and the frame if it is its last one."""
        self._announced: deque[_Announced] = deque()
        """Frames that are announced and have messages left to send."""
        self._num_announced_messages = 0
        """How many messages of the announced frames have not begun to be sent."""
        self._changed = threading.Condition()
        """Guards the queue, the number of users and `closed`; notified when one changes."""
        self.closed = False
        self._end_reason = f"the link to {peer_address} was closed"
        self._connection: socket.socket | None = None
        self._peer_health = end.peer_health
        self._thread = threading.Thread(target=self._run, name=f"kv-to-{peer_address}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads
            self.closed = True
            self._end_reason = f"no link to {peer_address} could be made ({error})"

    def hold(self) -> bool:
        """Keeps the link from ending for idleness until `let_go`.

        Returns False, and does nothing, if the link is over or its peer has closed its end.
        """
        with self._changed:
            if self.closed or is_closed(self._connection):
                return False
            self._num_users += 1
            return True

    def let_go(self) -> None:
        """Ends one `hold`."""
        with self._changed:
            self._num_users -= 1
            self._changed.notify_all()

    def push(self, frame: Frame) -> None:
        """Queues a frame. If the link is over, the frame ends at once with the reason."""
        with self._changed:
            if not self.closed:
                self._frames.append(frame)
                self._changed.notify_all()
                return
        frame.sending.frame_ended(self._end_reason)

    def cancel(self, transfer: Attempt) -> None:
        """Ends the frames of this transfer that are not announced. Announced ones are sent, since
        the peer waits for their messages on the pair."""
        with self._changed:
            dropped = [f for f in self._frames if f.sending.transfer == transfer]
            self._frames = deque(f for f in self._frames if f.sending.transfer != transfer)
        for frame in dropped:
            frame.sending.frame_ended("it was cancelled")

    def close(self) -> None:
        """Lets the link end when what is announced has been sent; all other frames fail."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    @property
    def is_alive(self) -> bool:
        """True while the link's thread runs."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Waits for the end of the link's thread; returns at once if it could not be started."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        """Serves the link on its own thread, and ends every frame, however that went."""
        try:
            self._serve()
        except (PeerLost, LayoutMismatch) as error:
            self._failed(f"{self._peer_address}: {error}")
        except Exception as error:
            self._failed(f"{self._peer_address}: {type(error).__name__}: {error}")
            log.exception("a link failed")
        finally:
            self._end_all()

    def _failed(self, reason: str) -> None:
        """Counts and logs a failure, which becomes the error of every frame that is left."""
        (self._counts or self._end.counts_of(self._peer_address)).failed()
        self._end_reason = reason
        log.warning("a link for KV pages is lost: %s", reason)

    def _serve(self) -> None:
        """Connects, makes the pair and sends. Raises PeerLost or LayoutMismatch."""
        connection = self._connect()
        try:
            welcome = self._greet(connection)
            self._peer_health = PeerHealth(welcome.node, welcome.health_address, self._end.secrets)
            self._end.on_met(self._peer_health)
            self._counts = counts = self._end.counts_of(welcome.node.name)
            backend = self._end.backends[welcome.backend]
            cut = Cut.of(self._end.hello.layout, self._end.rows.num_heads, welcome.message_bytes)
            pair = self._make_pair(connection, backend, welcome.window, cut.buffer_bytes)
            meter = counts.opened(backend.name)
            try:
                # The answer to a ping has this long, so that the loss of an idle peer is noticed
                # within SILENCE_S after it was last heard.
                connection.settimeout(SILENCE_S - PING_S)
                self._connection = connection
                with self._end.rows.on_stream():
                    self._send_all(connection, pair, welcome.window, cut, meter)
            finally:
                meter.close()
                pair.close()
        finally:
            with self._changed:
                self._connection = None
                connection.close()

    def _connect(self) -> socket.socket:
        """Returns a connection to the peer's data port. Raises PeerLost."""
        host, _, port = self._peer_address.rpartition(":")
        try:
            connection = socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S)
        except (OSError, ValueError, OverflowError) as error:  # an address may make no sense
            raise PeerLost(f"nobody listens there ({error})") from error
        # Headers are small and a peer waits for them: they must not be held back to be joined.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            prove_as_connecting(connection, self._end.secrets, self._is_peer_held_up)
        except PeerLost:
            connection.close()
            raise
        return connection

    def _greet(self, connection: socket.socket) -> Welcome:
        """Returns the peer's answer to our greeting. Raises LayoutMismatch if it refuses."""
        send_message(connection, self._end.hello)
        answer: Welcome | Refused = receive_message(
            connection,
            Welcome | Refused,  # type: ignore[arg-type]
            self._is_peer_held_up,
        )
        if isinstance(answer, Refused):
            raise LayoutMismatch(answer.reason)
        if answer.backend not in self._end.hello.backends or not answer.is_sane:
            raise PeerLost(f"the peer answered {answer}")
        return answer

    def _make_pair(
        self, connection: socket.socket, backend: PairBackend, window: int, buffer_bytes: int
    ) -> Pair:
        """Makes the pair, as the peer does at the same time. Raises PeerLost; the backend is then
        avoided for a while, so that the next link tries another one."""
        store = SocketStore(connection, PAIR_TIMEOUT_S, self._open_stream, self._is_peer_held_up)
        try:
            pair = backend.make_pair(
                store, SENDER_RANK, window, buffer_bytes, self._is_peer_held_up
            )
            try:
                store.finish()
            except BaseException:
                pair.close()
                raise
        except PeerLost:
            self._end.on_backend_failed(backend.name)
            raise
        return pair

    def _open_stream(self, store: SocketStore) -> socket.socket:
        """Opens the stream that the peer has named. Raises PeerLost."""
        name = store.get(STREAM_KEY)
        stream = self._connect()
        send_message(stream, StreamOf(name))
        return stream

    def _send_all(
        self, connection: socket.socket, pair: Pair, window: int, cut: Cut, meter: LinkMeter
    ) -> None:
        """Sends frames until the link is closed or has been idle for too long. Raises PeerLost."""
        # Each round: announce what is ready; then send one more message if the window has room,
        # else wait for the oldest one. So the window is full as long as there is work.
        while self._announce(connection, window, cut):
            if not self._under_way:
                meter.began(time.monotonic())
            if not self._announced or len(self._under_way) == window:
                self._oldest_sent(pair, meter)
            else:
                self._send_message(pair, cut)

    def _announce(self, connection: socket.socket, window: int, cut: Cut) -> bool:
        """Announces the frames that are ready; waits for one if there is nothing else to do.

        Returns False after it has said `Bye`: the link is to end.
        """
        if not self._announced and not self._under_way and not self._wait_for_frame(connection):
            send_message(connection, Bye())
            return False
        while self._num_announced_messages < ANNOUNCED_WINDOWS * window:
            frame = self._next_ready(cut)
            if frame is None:
                break
            header = FrameHeader(frame.sending.transfer, frame.shape, self._end.with_checksums)
            send_message(connection, header)
        return True

    def _next_ready(self, cut: Cut) -> Frame | None:
        """Moves the first frame that is ready from the queue to the announced ones and returns it,
        or None. From now on it cannot be cancelled."""
        with self._changed:
            if self.closed:
                return None
            # Not simply the first: pages that are still being computed hold no others back.
            frame = next((frame for frame in self._frames if frame.is_ready), None)
            if frame is not None:
                self._frames.remove(frame)
                self._announced.append(_Announced(frame))
                self._num_announced_messages += cut.num_messages(frame.shape)
            return frame

    def _wait_for_frame(self, connection: socket.socket) -> bool:
        """Waits until a frame is ready, pinging the peer meanwhile. Returns False if the link is
        to end: it was closed, or nobody has held it for too long. Raises PeerLost."""
        idle_since = time.monotonic()
        next_ping = idle_since + PING_S
        while True:
            with self._changed:
                is_wanted = bool(self._frames) or self._num_users > 0
                idle_s = time.monotonic() - idle_since
                if self.closed or (not is_wanted and idle_s >= self._end.idle_close_s):
                    self.closed = True
                    return False
                if any(frame.is_ready for frame in self._frames):
                    return True
                next_rows = self._frames[0].rows if self._frames else None
                # Nobody is told when a CUDA event has happened: a queued frame must be polled.
                self._changed.wait(READY_POLL_S if self._frames else PING_S)
            if next_rows is not None:
                next_rows.prepare(self._end.rows)  # while its pages are still being computed
            if time.monotonic() >= next_ping:
                send_message(connection, Ping())
                receive_message(connection, Pong, self._is_peer_held_up)
                next_ping = time.monotonic() + PING_S

    def _is_peer_held_up(self) -> bool:
        """Returns True if the peer, which is silent, is alive and still wanted. Asks its health
        port, see `PeerHealth`."""
        return (
            not self.closed
            and not is_closed(self._connection)
            and self._peer_health is not None
            and self._peer_health.is_alive()
        )

    def _send_message(self, pair: Pair, cut: Cut) -> None:
        """Gathers and sends the next message of the frame that was announced first."""
        announced, pool = self._announced[0], self._end.rows
        frame = announced.frame
        if announced.index is None:
            announced.index = frame.rows.index(frame.shape, pool)
        first = announced.num_sent_rows
        rows = announced.index[first : first + cut.rows_per_message]
        num_bytes = len(rows) * pool.row_bytes
        with_checksums = self._end.with_checksums
        buffer = pair.reserve(num_bytes + (CHECKSUM_BYTES if with_checksums else 0))
        pool.gather(rows, buffer[:num_bytes])
        if with_checksums:
            append_checksum(buffer)
        pair.send()
        announced.num_sent_rows += len(rows)
        self._num_announced_messages -= 1
        is_last = announced.num_sent_rows == frame.shape.num_rows
        if is_last:
            self._announced.popleft()
        self._under_way.append((num_bytes, frame if is_last else None))

    def _oldest_sent(self, pair: Pair, meter: LinkMeter) -> None:
        """Waits for the oldest message under way. Ends its frame if it was the last one of it."""
        pair.sent()
        num_bytes, frame = self._under_way.popleft()
        meter.moved(num_bytes, time.monotonic())
        if frame is not None:
            frame.sending.frame_ended()

    def _end_all(self) -> None:
        """Closes the link and ends all frames that are not sent, with the reason for its end."""
        with self._changed:
            self.closed = True
            frames = [frame for _, frame in self._under_way if frame is not None]
            frames += [announced.frame for announced in self._announced]
            frames += self._frames
            self._frames.clear()
        for frame in frames:
            frame.sending.frame_ended(self._end_reason)
