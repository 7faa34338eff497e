"""`LocalBackend`: pairs within one process, for tests.

As over gloo, a send ends only when its receive has the bytes. If it ended earlier, a sender would
hear of success over a link that has just broken.
"""

from __future__ import annotations

import queue
import threading
import uuid
from collections import deque

import torch
from torch import Tensor
from torch.distributed import Store

from kvtransfer.backends.pair import RECEIVER_RANK, IsAlive
from kvtransfer.transport import PeerLost


class _LocalMessage:
    """The bytes of a send. `taken` is set when the receiver has copied them."""

    def __init__(self, content: Tensor) -> None:
        self.content = content
        self.taken = threading.Event()


class LocalBackend:
    """Makes pairs between all transports that share one instance of it."""

    name = "local"
    staging_device = torch.device("cpu")
    message_bytes = 1 << 20
    window = 4
    min_send_bytes = 1 << 10

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._queues: dict[str, queue.Queue[_LocalMessage]] = {}

    def make_pair(
        self, store: Store, rank: int, window: int, buffer_bytes: int, is_peer_alive: IsAlive
    ) -> LocalPair:
        if rank == RECEIVER_RANK:
            name = uuid.uuid4().hex
            self._queues[name] = queue.Queue(maxsize=window)
            store.set("queue", name)
        else:
            name = store.get("queue").decode()
        return LocalPair(self._queues[name], self._timeout_s, is_peer_alive)


class LocalPair:
    """A pair over a queue that both of its ends share."""

    def __init__(
        self, messages: queue.Queue[_LocalMessage], timeout_s: float, is_peer_alive: IsAlive
    ) -> None:
        self._messages = messages
        self._is_peer_alive = is_peer_alive
        self._timeout_s = timeout_s
        self._reserved = torch.empty(0)
        self._under_way: deque[_LocalMessage] = deque()
        self._posted: deque[Tensor] = deque()

    def reserve(self, num_bytes: int) -> Tensor:
        self._reserved = torch.empty(num_bytes, dtype=torch.uint8)
        return self._reserved

    def send(self) -> None:
        self._under_way.append(_LocalMessage(self._reserved))
        self._messages.put_nowait(self._under_way[-1])  # full only beyond the window

    def sent(self) -> None:
        taken = self._under_way.popleft().taken
        while not taken.wait(self._timeout_s):
            if not self._is_peer_alive():
                raise PeerLost(f"nobody received for {self._timeout_s:g} s")

    def post(self, num_bytes: int) -> None:
        self._posted.append(torch.empty(num_bytes, dtype=torch.uint8))

    def received(self) -> Tensor:
        message = self._next_message()
        buffer = self._posted.popleft().copy_(message.content)
        message.taken.set()
        return buffer

    def _next_message(self) -> _LocalMessage:
        while True:
            try:
                return self._messages.get(timeout=self._timeout_s)
            except queue.Empty as error:
                if not self._is_peer_alive():
                    raise PeerLost(f"nothing arrived for {self._timeout_s:g} s") from error

    def release(self) -> None:
        """Does nothing: every message has a buffer of its own."""

    def close(self) -> None:
        """Does nothing: the queue ends with its last reference."""
