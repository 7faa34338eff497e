"""Makes the backends that a node can use, the best first."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvtransfer.backends.gloo import GlooBackend
from kvtransfer.backends.nccl import NcclBackend
from kvtransfer.backends.pair import PairBackend
from kvtransfer.backends.shared_memory import SharedMemoryBackend
from kvtransfer.backends.tcp import TcpBackend

OPERATION_TIMEOUT_S = 3.0
"""How long a backend may take for one message before the peer is taken for lost."""


def make_backends(name: str, host: str, device: torch.device) -> Sequence[PairBackend]:
    """Returns the backend `name`, or for "auto" all that a rank on `device` can use.

    `host` is this node's own address. Two nodes use the first backend of the sender's list that
    both have and that reaches from one to the other.
    """
    backends: list[PairBackend] = []
    if name in ("auto", "nccl") and device.type == "cuda":
        backends.append(NcclBackend(device, OPERATION_TIMEOUT_S))
    if name in ("auto", "shm"):
        backends.append(SharedMemoryBackend(OPERATION_TIMEOUT_S))
    if name in ("auto", "tcp"):
        backends.append(TcpBackend(OPERATION_TIMEOUT_S))
    if name == "gloo":
        # Never by itself: it listens on a port that it chooses, and asks nobody who he is.
        backends.append(GlooBackend(host, OPERATION_TIMEOUT_S))
    return backends
