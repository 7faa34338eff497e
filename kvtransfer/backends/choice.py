"""The backends that a node can use, best first."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvtransfer.backends.gloo import GlooBackend
from kvtransfer.backends.nccl import NcclBackend
from kvtransfer.backends.pair import PairBackend
from kvtransfer.backends.shared_memory import SharedMemoryBackend

OPERATION_TIMEOUT_S = 3.0


def make_backends(name: str, host: str, device: torch.device) -> Sequence[PairBackend]:
    """`name`: one backend, or auto for all that `device` can use. `host`: this node's own address.

    Between two nodes the first is taken that both have and that reaches from one to the other.
    """
    backends: list[PairBackend] = []
    if name in ("auto", "nccl") and device.type == "cuda":
        backends.append(NcclBackend(device, OPERATION_TIMEOUT_S))
    if name in ("auto", "shm"):
        backends.append(SharedMemoryBackend(OPERATION_TIMEOUT_S))
    if name in ("auto", "gloo"):
        backends.append(GlooBackend(host, OPERATION_TIMEOUT_S))
    return backends
