"""Every backend, and endpoints that are closed, with nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kvtransfer.backends.faulty import Faults, FaultyBackend
from kvtransfer.backends.pair import PairBackend
from tests.support.transfer.endpoints import NCCL, Endpoint, Make, new_backend


@pytest.fixture(params=["local", "shm", "tcp", "gloo", NCCL])
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(backend_name: str) -> Iterator[Make]:
    """Gives a function that makes endpoints. Over NCCL every second one is on the other GPU, unless
    `gpu` says which it is on."""
    endpoints: list[Endpoint] = []
    shared = None if backend_name == "nccl" else new_backend(backend_name)

    def factory(
        name: str, faults: Faults | None = None, gpu: int | None = None, **changes: Any
    ) -> Endpoint:
        gpu = len(endpoints) % 2 if gpu is None else gpu
        backend: PairBackend = changes.pop("backend", shared or new_backend(f"nccl:{gpu}"))
        if faults is not None:
            backend = FaultyBackend(backend, faults)
        endpoint = Endpoint(name, backend, **changes)
        endpoints.append(endpoint)
        return endpoint

    yield factory
    for endpoint in endpoints:
        endpoint.transport.close()
    leftover = [t.name for t in threading.enumerate() if t.name.startswith("kv-")]
    assert not leftover, "close() left threads behind"
