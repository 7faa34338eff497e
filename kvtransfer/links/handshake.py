"""The messages on the socket of a link: the greeting, then a header before each frame.

Each is msgpack behind its length, a little-endian uint32. The socket also tells at once when the
peer's process ends, and pings tell within two seconds when the peer is stopped or cut off, which
TCP itself does not (docs/decisions/0010).
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from kvtransfer.pages.layout import FrameShape, Shard
from kvtransfer.transport import PeerLost
from protocol.ids import Attempt, Node
from protocol.layout import KVLayout
from protocol.trust import versions
from protocol.trust.versions import Versions

MAX_MESSAGE_BYTES = 64 << 10
"""The longest message on the socket; a longer one is taken for garbage."""
MAX_PAIR_MESSAGE_BYTES = 1 << 30
MAX_WINDOW = 256
"""The largest values of a `Welcome` that are believed: they decide how much memory is reserved."""
PAIR_TIMEOUT_S = 4.0
"""How long the two ranks may take to make a pair; the first NCCL pair of a process takes 1 s."""
PING_S = 0.5
"""Seconds between two pings of a sender that has nothing to send."""
SILENCE_S = 1.8
"""A receiver that hears nothing for this long takes the sender for lost."""
_LENGTH = struct.Struct("<I")


class Place(msgspec.Struct, frozen=True):
    """Where a rank runs, which decides which backends reach it."""

    host: str
    """A name that is equal for two processes exactly if they can share memory."""
    gpu: str = ""
    """The UUID of the rank's CUDA device; "" without one."""


class Hello(msgspec.Struct, frozen=True, tag=True):
    """Sender → receiver: the first message, says who wants to send what."""

    version: int
    """The newest version of the protocol that the sender speaks."""
    node: Node
    layout: KVLayout
    """The layout of the whole model, not of the rank's shard."""
    fingerprint: str
    """The fingerprint of the model's weights."""
    shard: Shard
    """The sender's shard."""
    to: Shard
    """The shard that the sender believes the receiver to be; the receiver checks it."""
    place: Place
    backends: list[str]
    """The names of the backends that the sender can use, best first."""
    address: str = ""
    """Where the sender receives pages itself."""
    health_address: str = ""
    """Where the sender tells how it does, even while none of its threads runs."""
    oldest_version: int = Versions().oldest
    release: str = ""

    @property
    def versions(self) -> Versions:
        """What the sender speaks."""
        return Versions(self.version, self.oldest_version, self.release)


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """Receiver → sender: the link is accepted; both make a pair with this backend now.

    Both ends cut frames by the receiver's sizes. They must agree: gloo ends the whole process
    that receives a message longer than the posted buffer (SIGABRT, which cannot be caught).
    """

    node: Node
    backend: str
    message_bytes: int
    """The size of a message on the pair, but for a row that is longer alone."""
    window: int
    """How many messages may be under way at once."""
    health_address: str = ""
    """Where the receiver tells how it does, as in `Hello`."""

    @property
    def is_sane(self) -> bool:
        """True unless its sizes are impossible or would exhaust this process's memory."""
        return 0 < self.message_bytes <= MAX_PAIR_MESSAGE_BYTES and 0 < self.window <= MAX_WINDOW


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Receiver → sender: the link is refused, for this reason."""

    reason: str


class FrameHeader(msgspec.Struct, frozen=True, tag=True):
    """Sender → receiver: announces the next frame, whose messages come on the pair."""

    transfer: Attempt
    shape: FrameShape
    has_checksums: bool
    """True if every message of the frame ends with `CHECKSUM_BYTES` of checksum."""


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Sender → receiver: the link is idle, and the sender is alive."""


class Pong(msgspec.Struct, frozen=True, tag=True):
    """Receiver → sender: the answer to a `Ping`."""


class Bye(msgspec.Struct, frozen=True, tag=True):
    """Sender → receiver: the link ends in order, after all frames that were announced."""


M = TypeVar("M")


def send_message(connection: socket.socket, message: msgspec.Struct) -> None:
    """Writes `message` to the socket. Raises PeerLost."""
    raw = msgspec.msgpack.encode(message)
    send_exactly(connection, _LENGTH.pack(len(raw)) + raw)


def send_exactly(connection: socket.socket, raw: bytes) -> None:
    """Writes these bytes to the socket. Raises PeerLost."""
    try:
        connection.sendall(raw)
    except OSError as error:
        raise PeerLost(f"the peer closed the link ({error})") from error


def nobody_knows() -> bool:
    """Stands for the question whether a peer lives that nobody can answer."""
    return False


def receive_message(
    connection: socket.socket, kind: type[M], is_peer_alive: Callable[[], bool] = nobody_knows
) -> M:
    """Reads the next message, which must be of type `kind`.

    Raises PeerLost at the end of the stream, on garbage, and for a message that takes longer than
    the socket's timeout, unless `is_peer_alive` says that the peer is only held up: it is asked
    whenever that time has passed.
    """
    (length,) = _LENGTH.unpack(receive_exactly(connection, _LENGTH.size, is_peer_alive))
    if length > MAX_MESSAGE_BYTES:
        raise PeerLost(f"the peer announced {length} bytes: it is no kvrelay node")
    try:
        raw = receive_exactly(connection, length, is_peer_alive)
        return msgspec.msgpack.decode(raw, type=kind)
    except (ValueError, RecursionError) as error:  # a text may be no UTF-8, which is no DecodeError
        raise PeerLost(f"the peer sent garbage ({error})") from error


def is_closed(connection: socket.socket | None) -> bool:
    """Returns True if either end has closed the connection; False before there is one."""
    if connection is None:
        return False
    if connection.fileno() < 0:
        return True
    # A look with `recv(MSG_PEEK)` would race with the link's thread, which may read the very Pong
    # that was seen; the look then waits for the socket's timeout. POLLRDHUP reads nothing.
    hung_up = select.poll()
    hung_up.register(connection, select.POLLRDHUP)
    return bool(hung_up.poll(0))


def refusal(mine: Hello, theirs: Hello) -> str:
    """Returns why the sender of `theirs` must not send pages here, as half a sentence; "" if it
    may. `mine` is the greeting of the receiver's own rank."""
    if unspeakable := versions.refusal(f"node {theirs.node.name}", theirs.versions, mine.versions):
        return unspeakable
    if mine.layout != theirs.layout:
        return f"KV layouts differ: {mine.layout.differences(theirs.layout)}"
    if mine.fingerprint != theirs.fingerprint:
        return "the nodes serve different weights"
    if mine.shard != theirs.to:
        return (
            f"this is rank {mine.shard.rank} of {mine.shard.num_ranks}, "
            f"not {theirs.to.rank} of {theirs.to.num_ranks}"
        )
    return ""


def choose_backend(mine: Hello, theirs: Hello) -> str:
    """Returns the sender's best backend that both ranks have and that reaches from one to the
    other; "" if there is none."""
    return next(
        (b for b in theirs.backends if b in mine.backends and _reaches(b, mine, theirs)), ""
    )


def no_backend(mine: Hello, theirs: Hello) -> str:
    """Returns half a sentence that says why `choose_backend` found none, and the remedy."""
    return (
        f"no common way for pages: {_listed(mine.backends)} here, {_listed(theirs.backends)} "
        "there; shm needs one host, nccl two GPUs; set --kv-backend auto"
    )


def _reaches(backend: str, mine: Hello, theirs: Hello) -> bool:
    """Returns True if the backend can move bytes between the two ranks' places."""
    if backend == "shm":
        return mine.place.host == theirs.place.host
    if backend == "nccl":
        # Two ranks of an NCCL pair need two GPUs.
        return "" != mine.place.gpu != theirs.place.gpu != ""
    return True


def _listed(names: Sequence[str]) -> str:
    return " or ".join(names) or "none"


def receive_exactly(
    connection: socket.socket, count: int, is_peer_alive: Callable[[], bool] = nobody_knows
) -> bytes:
    """Reads `count` bytes. Raises PeerLost as `receive_message` does."""
    parts, timeout_s = bytearray(), connection.gettimeout()
    # The socket's timeout holds for each `recv`: a peer that sends a byte now and then would keep
    # this thread for ever without a deadline over all of them.
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while len(parts) < count:
        is_late = deadline is not None and time.monotonic() > deadline
        try:
            part = b"" if is_late else connection.recv(count - len(parts))
        except TimeoutError:
            is_late = True
        except OSError as error:
            raise PeerLost(f"the link broke ({error})") from error
        if is_late:
            if not is_peer_alive():
                raise PeerLost(f"the peer was silent for {timeout_s:g} s")
            deadline = time.monotonic() + (timeout_s or 0.0)
        elif not part:
            raise PeerLost("the peer closed the link")
        else:
            parts += part
    return bytes(parts)
