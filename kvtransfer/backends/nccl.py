"""`NcclBackend`: pairs over NCCL, between two GPUs.

A pair is a two-rank group without a default group. NCCL never says that a peer has died: only our
own deadline tells, while we look whether an operation is done. Torch's watchdog, which would end
the process, is off, and `abort` takes half a second, so it runs in a thread; CUDA and other pairs
then go on. Gather and scatter run on the link's CUDA stream and NCCL on its own, so one message is
copied while others travel.

A new thread begins on the first GPU, and whatever makes that one current again, as the end of a
stream's context or of an abort does, takes half a gigabyte of it. So each thread here first makes
the pair's GPU its own.

`tests/gpu` and the contract suite have run on two H100s (torch 2.11, NCCL 2.28.9).
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import Store

from kvtransfer.backends.group_pair import GroupPair, made_aside
from kvtransfer.backends.pair import RECEIVER_RANK, SENDER_RANK, IsAlive
from kvtransfer.backends.ring import Ring
from kvtransfer.transport import PeerLost

CONNECT_TIMEOUT_S = 4.0
NUM_SPINS = 50
"""How many looks whether an operation is done follow one another without a pause."""
POLL_S = 0.00005
"""The pause between later looks, in seconds. A message takes some 100 µs."""


class NcclBackend:
    """Makes NCCL pairs for one GPU. Messages are long, because NCCL needs 16 MiB or more for its
    bandwidth; a pair takes about 0.26 GB of the GPU's memory."""

    name = "nccl"
    message_bytes = 64 << 20
    window = 3
    min_send_bytes = 8 << 20

    def __init__(self, device: torch.device, timeout_s: float) -> None:
        # The watchdog would end the process on a peer's death; our deadlines do its work.
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
        os.environ["TORCH_NCCL_ENABLE_MONITORING"] = "0"
        # One pair moves one message after another, as it is meant to.
        os.environ["TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING"] = "false"
        self.staging_device = device
        self._timeout_s = timeout_s

    def make_pair(
        self, store: Store, rank: int, window: int, buffer_bytes: int, is_peer_alive: IsAlive
    ) -> NcclPair:
        from torch.distributed import ProcessGroupNCCL  # absent from CPU builds of torch

        options = ProcessGroupNCCL.Options()
        # The peer's kernel waits on its GPU for our message, which must not wait for a prompt.
        options.is_high_priority_stream = True
        options._timeout = timedelta(seconds=self._timeout_s)
        try:
            group = ProcessGroupNCCL(store, rank, 2, options)
            self._connect(group, rank, is_peer_alive)
        except RuntimeError as error:
            raise PeerLost(f"no NCCL pair could be made ({error})") from error
        ring = Ring(window, buffer_bytes, self.staging_device)
        return NcclPair(group, ring, self._timeout_s, is_peer_alive, self.staging_device)

    def _connect(self, group: Any, rank: int, is_peer_alive: IsAlive) -> None:
        """Connects the two ranks of `group`. Raises RuntimeError or PeerLost; a thread then gives
        back what the group has taken of the GPU.

        NCCL waits for the other rank without a deadline, when it makes a communicator and again
        in its first send or receive: so both are done in a thread that can be left behind.
        """
        is_left = threading.Event()

        def connect() -> bool:
            torch.cuda.set_device(self.staging_device)
            group.eager_connect_single_device(self.staging_device)
            self._exchange_a_byte(group, rank, is_left)
            return True

        try:
            made_aside(connect, CONNECT_TIMEOUT_S, is_peer_alive)
        except (PeerLost, RuntimeError):
            is_left.set()
            _abort_aside(group, self.staging_device)
            raise

    def _exchange_a_byte(self, group: Any, rank: int, is_left: threading.Event) -> None:
        """Sends the pair's first message, one byte, from the sender's rank to the receiver's.
        Waits for its end, or until nobody waits for this thread any more."""
        # On a stream of its own: the current one may be busy with a long step.
        with torch.cuda.stream(torch.cuda.Stream(self.staging_device)):
            byte = [torch.zeros(1, dtype=torch.uint8, device=self.staging_device)]
            if rank == SENDER_RANK:
                work = group.send(byte, RECEIVER_RANK, 0)
            else:
                work = group.recv(byte, SENDER_RANK, 0)
        while not work.is_completed() and not is_left.is_set():
            time.sleep(POLL_S)


class NcclPair(GroupPair):
    """A pair over NCCL. An operation runs on NCCL's own stream and begins when the work is done
    that the current stream has been given so far, such as the gather of its message."""

    def __init__(
        self,
        group: Any,
        ring: Ring,
        timeout_s: float,
        is_peer_alive: IsAlive,
        device: torch.device,
    ) -> None:
        super().__init__(group, ring)
        self._timeout_s = timeout_s
        self._is_peer_alive = is_peer_alive
        self._device = device

    def close(self) -> None:
        # With the pair itself, so that the thread keeps the ring of buffers until NCCL can no
        # longer write into them.
        _abort_aside(self._group, self._device, self)

    def _wait(self, work: Any) -> None:
        # Not by `work.wait()`: it only makes our stream wait, and has no deadline.
        deadline = time.monotonic() + self._timeout_s
        for num_looks in itertools.count():
            if work.is_completed():
                return
            if time.monotonic() > deadline:
                if not self._is_peer_alive():
                    raise PeerLost(f"NCCL moved nothing for {self._timeout_s:g} s")
                deadline = time.monotonic() + self._timeout_s
            # A sleep of 0 s only lets other threads have Python's lock.
            time.sleep(POLL_S if num_looks > NUM_SPINS else 0)


def _abort_aside(group: Any, device: torch.device, *kept: object) -> None:
    """Aborts a group on a thread of its own, which keeps what is `kept` until that is done."""

    def abort(*_: object) -> None:
        torch.cuda.set_device(device)
        group.abort()

    threading.Thread(target=abort, args=kept, name="nccl-abort", daemon=True).start()
