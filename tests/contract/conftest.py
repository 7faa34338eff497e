"""Every backend that needs no GPU, and endpoints that are closed, with nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from endpoints import Endpoint, Make, new_backend

from kvtransfer.pair import PairBackend


@pytest.fixture(params=["local", "shm", "gloo"])
def backend(request: pytest.FixtureRequest) -> PairBackend:
    return new_backend(request.param)


@pytest.fixture
def make(backend: PairBackend) -> Iterator[Make]:
    endpoints: list[Endpoint] = []

    def factory(name: str, **changes: Any) -> Endpoint:
        endpoint = Endpoint(name, changes.pop("backend", backend), **changes)
        endpoints.append(endpoint)
        return endpoint

    yield factory
    for endpoint in endpoints:
        endpoint.transport.close()
    leftover = [t.name for t in threading.enumerate() if t.name.startswith("kv-")]
    assert not leftover, "close() left threads behind"
