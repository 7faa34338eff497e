"""Peers whose threads are held up, as by a compiler that keeps Python's lock, keep their links."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvtransfer.links.handshake import SILENCE_S
from tests.support.transfer.endpoints import (
    TIMEOUT_S,
    Endpoint,
    attempt,
    new_backend,
)
from tests.support.transfer.peers import (
    BIG,
    LARGE,
    Victim,
    await_lost_links,
    exchange,
    victim_process,
)

BACKENDS = ["shm", *(pytest.param(name, marks=pytest.mark.verify) for name in ("tcp", "gloo"))]
HELD_S = 2 * max(SILENCE_S, TIMEOUT_S)
"""Longer than any link waits for a peer that nobody vouches for."""


@contextmanager
def linked(backend_name: str, stall_s: float) -> Iterator[tuple[Endpoint, Victim]]:
    """Gives a survivor and a victim with links in both directions."""
    survivor = Endpoint("survivor", new_backend(backend_name), layout=LARGE)
    try:
        with victim_process(backend_name, layout=LARGE, stall_s=stall_s) as victim:
            _exchange(survivor, victim, 1)
            yield survivor, victim
    finally:
        survivor.transport.close()


def _exchange(survivor: Endpoint, victim: Victim, number: int) -> None:
    """Sends a page each way."""
    survivor.expect(attempt(number), [0])
    victim.send(survivor.address, attempt(number), [3])
    assert survivor.await_received() == (attempt(number), "")
    assert victim.await_sent() == ""
    survivor.send(victim.address, attempt(number), [0])
    assert survivor.await_sent() == (attempt(number), "")


def _failures(survivor: Endpoint) -> dict[str, int]:
    links = [link for link in survivor.transport.links() if link.peer == "victim"]
    assert all(link.is_open for link in links)
    return {link.direction: link.failures for link in links}


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_idle_links_outlast_a_held_lock(backend_name: str) -> None:
    with linked(backend_name, stall_s=1000.0) as (survivor, victim):
        victim.hold_lock(HELD_S)
        victim.await_release()
        assert _failures(survivor) == {"in": 0, "out": 0}
        _exchange(survivor, victim, 2)
        assert _failures(survivor) == {"in": 0, "out": 0}, "the links were made anew"


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_a_transfer_outlasts_a_held_lock_and_others_go_on(backend_name: str) -> None:
    other = Endpoint("other", new_backend(backend_name), layout=LARGE)
    try:
        with linked(backend_name, stall_s=1000.0) as (survivor, victim):
            victim.hold_lock(HELD_S)
            survivor.send(victim.address, attempt(2), BIG)
            exchange(survivor, other, 3)
            victim.await_release()
            assert survivor.await_sent() == (attempt(2), "")
            assert _failures(survivor) == {"in": 0, "out": 0}
    finally:
        other.transport.close()


@pytest.mark.verify
def test_a_new_link_outlasts_a_held_lock() -> None:
    """The survivor knows where the victim's companion answers from the link that it had before."""
    survivor = Endpoint("survivor", new_backend("shm"), layout=LARGE)
    try:
        with victim_process("shm", layout=LARGE, stall_s=1000.0) as victim:
            survivor.expect(attempt(1), [0])
            victim.send(survivor.address, attempt(1), [3])
            assert survivor.await_received() == (attempt(1), "")
            assert victim.await_sent() == ""
            victim.hold_lock(HELD_S)
            survivor.send(victim.address, attempt(2), [0])
            assert survivor.await_sent() == (attempt(2), "")
            assert _failures(survivor) == {"in": 0, "out": 0}
    finally:
        survivor.transport.close()


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_the_making_of_a_pair_outlasts_a_held_lock(
    backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_s = 1.5 * TIMEOUT_S
    monkeypatch.setattr("kvtransfer.links.outgoing.PAIR_TIMEOUT_S", held_s / 3)
    survivor = Endpoint("survivor", new_backend(backend_name), layout=LARGE)
    try:
        with victim_process(backend_name, layout=LARGE, stall_s=1000.0) as victim:
            victim.hold_lock_in_next_pair(held_s)
            survivor.send(victim.address, attempt(1), [0])
            victim.await_held()
            assert survivor.sent.empty()
            victim.await_release()
            assert survivor.await_sent() == (attempt(1), "")
            (link,) = survivor.transport.links()
            assert link.is_open and link.failures == 0
    finally:
        survivor.transport.close()


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_a_transport_closes_while_a_peer_is_held_up(backend_name: str) -> None:
    with linked(backend_name, stall_s=1000.0) as (survivor, victim):
        victim.hold_lock(HELD_S)
        survivor.send(victim.address, attempt(2), BIG)
        survivor.transport.close()
        transfer, error = survivor.await_sent()
        assert transfer == attempt(2) and error


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_peer_that_is_lost_while_it_has_a_companion(backend_name: str, how: str) -> None:
    with linked(backend_name, stall_s=1000.0) as (survivor, victim):
        getattr(victim, how)()
        await_lost_links(survivor, "victim")


def test_a_stuck_peer_is_lost() -> None:
    """Its companion tells that its main loop has not come round for too long."""
    with linked("shm", stall_s=0.001) as (survivor, victim):
        victim.hold_lock(HELD_S)
        await_lost_links(survivor, "victim")
