"""`GroupPair`: what pairs over a two-rank process group of torch have in common."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from kvtransfer.backends.pair import RECEIVER_RANK, SENDER_RANK, IsAlive
from kvtransfer.backends.ring import Ring
from kvtransfer.transport import PeerLost


class GroupPair(ABC):
    """A pair over a process group. Subclasses say how to wait for an operation and how to close.

    It calls the group's own `send` and `recv`: those of `torch.distributed` only take groups that
    are registered, which would need a default group over all nodes.
    """

    def __init__(self, group: Any, ring: Ring) -> None:
        """`group` has this rank and its peer; `ring` has as many buffers as the window."""
        self._group = group
        self._ring = ring
        self._reserved: Tensor | None = None
        self._under_way: deque[tuple[Any, Tensor]] = deque()
        """The operations (torch's Work) that have not ended, the oldest first, with buffers."""

    def reserve(self, num_bytes: int) -> Tensor:
        self._reserved = self._ring.take(num_bytes)
        return self._reserved

    def send(self) -> None:
        assert self._reserved is not None
        self._start(self._group.send, self._reserved, RECEIVER_RANK)

    def sent(self) -> None:
        self._oldest()

    def post(self, num_bytes: int) -> None:
        self._start(self._group.recv, self._ring.take(num_bytes), SENDER_RANK)

    def received(self) -> Tensor:
        return self._oldest()

    def release(self) -> None:  # noqa: B027 (there is nothing to do)
        """Does nothing: the ring hands the buffer out again in its turn. The receiver has emptied
        it by then, or will have before the current stream comes to the next receive."""

    @abstractmethod
    def close(self) -> None:
        """Gives up the pair and all that is under way. Does not wait."""

    @abstractmethod
    def _wait(self, work: Any) -> None:
        """Waits for the end of one operation. Raises PeerLost or RuntimeError if it failed or did
        not end within the backend's deadline."""

    def _start(
        self, operation: Callable[[list[Tensor], int, int], Any], buffer: Tensor, rank: int
    ) -> None:
        """Starts `operation`, the group's `send` or `recv`, between `buffer` and the peer `rank`.

        The tag is always 0: NCCL has no tags, and the order alone says which message is which.
        """
        try:
            self._under_way.append((operation([buffer], rank, 0), buffer))
        except RuntimeError as error:
            raise _lost(error) from error

    def _oldest(self) -> Tensor:
        """Waits for the oldest operation and returns its buffer. Raises PeerLost."""
        work, buffer = self._under_way[0]
        try:
            self._wait(work)
        except RuntimeError as error:
            raise _lost(error) from error
        self._under_way.popleft()
        return buffer


NUM_LOOKS = 6
"""How often something is looked at within its deadline. What is late has been found unfinished so
often: while this process itself is held up nobody looks, and its pause is not its peer's."""
T = TypeVar("T")


def made_aside(make: Callable[[], T], timeout_s: float, is_peer_alive: IsAlive) -> T:
    """Returns what `make` returns, and raises what it raises, on a thread of its own.

    Making a group waits for the other rank, where nothing can end the wait. So the thread is left
    behind, and PeerLost raised, if it takes longer than `timeout_s` and the peer does not live.
    """
    ended: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((make(), None))
        except Exception as error:
            ended.put((None, error))

    threading.Thread(target=run, name="pair-making", daemon=True).start()
    num_looks = 0
    while True:
        try:
            made, error = ended.get(timeout=timeout_s / NUM_LOOKS)
        except queue.Empty:
            num_looks += 1
            if num_looks % NUM_LOOKS == 0 and not is_peer_alive():
                raise PeerLost(f"no pair was made within {timeout_s:g} s") from None
            continue
        if error is not None:
            raise error
        assert made is not None
        return made


def _lost(error: RuntimeError) -> PeerLost:
    return PeerLost(f"the process group lost the peer ({str(error).splitlines()[0]})")
