"""`GroupPair`: a pair over a two-rank process group of torch, whatever its backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from torch import Tensor

from kvtransfer.backends.pair import RECEIVER_RANK, SENDER_RANK
from kvtransfer.backends.ring import Ring
from kvtransfer.transport import PeerLost


class GroupPair(ABC):
    """What gloo and NCCL have in common. How an operation is waited for they have not."""

    def __init__(self, group: Any, ring: Ring) -> None:
        self._group = group
        self._ring = ring
        self._reserved: Tensor | None = None
        self._under_way: deque[tuple[Any, Tensor]] = deque()

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
        """The ring's order says it: whoever emptied the buffer waited for the end of its copy."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _wait(self, work: Any) -> None:
        """For the end of one operation. Raises PeerLost or RuntimeError within the deadline."""

    def _start(
        self, operation: Callable[[list[Tensor], int, int], Any], buffer: Tensor, rank: int
    ) -> None:
        try:
            self._under_way.append((operation([buffer], rank, 0), buffer))
        except RuntimeError as error:
            raise _lost(error) from error

    def _oldest(self) -> Tensor:
        work, buffer = self._under_way.popleft()
        try:
            self._wait(work)
        except RuntimeError as error:
            raise _lost(error) from error
        return buffer


def _lost(error: RuntimeError) -> PeerLost:
    return PeerLost(f"the process group lost the peer ({str(error).splitlines()[0]})")
