"""Peers in processes of their own: killed, cut off, restarted. Only their links are lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.transfer.endpoints import (
    DEADLINE_S,
    NCCL,
    Endpoint,
    attempt,
    new_backend,
    same,
)
from tests.support.transfer.peers import (
    BIG,
    LARGE,
    Victim,
    await_lost_links,
    exchange,
    victim_process,
)

MAX_TRIES = 20


@pytest.fixture(params=["shm", "tcp", "gloo", NCCL])
def backend_name(request: pytest.FixtureRequest) -> str:
    """The backend of the peers; see `here` for the survivor's."""
    return "nccl:1" if request.param == "nccl" else str(request.param)


def here(backend_name: str) -> str:
    return backend_name.replace("nccl:1", "nccl:0")


@pytest.fixture
def ends(backend_name: str) -> Iterator[tuple[Endpoint, Endpoint]]:
    """Makes a survivor, and another node that goes on exchanging pages with it."""
    survivor = Endpoint("survivor", new_backend(here(backend_name)), layout=LARGE)
    other = Endpoint("other", new_backend(backend_name), layout=LARGE)
    yield survivor, other
    survivor.transport.close()
    other.transport.close()


def test_a_peer_killed_in_the_middle_of_a_transfer(
    backend_name: str, ends: tuple[Endpoint, Endpoint]
) -> None:
    survivor, other = ends
    with victim_process(backend_name, layout=LARGE) as victim:
        survivor.expect(attempt(1), [0, 1])
        victim.send(survivor.address, attempt(1), [3])
        assert survivor.await_progress() == (attempt(1), 1)
        victim.kill()
        transfer, error = survivor.await_received()
        assert transfer == attempt(1) and "victim" in error
        survivor.send(victim.address, attempt(2), [0])
        assert survivor.await_sent()[1] != ""
        exchange(survivor, other, 3)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_idle_links_to_a_lost_peer_end(
    backend_name: str, ends: tuple[Endpoint, Endpoint], how: str
) -> None:
    """A stopped process keeps its sockets open: only its silence tells."""
    survivor, other = ends
    with victim_process(backend_name, layout=LARGE) as victim:
        survivor.expect(attempt(1), [0])
        victim.send(survivor.address, attempt(1), [3])
        assert survivor.await_received() == (attempt(1), "")
        survivor.send(victim.address, attempt(2), [0])
        assert survivor.await_sent() == (attempt(2), "")
        getattr(victim, how)()
        await_lost_links(survivor, "victim")
        exchange(survivor, other, 3)


def test_a_receiver_that_is_cut_off_fails_what_is_sent_to_it(
    backend_name: str, ends: tuple[Endpoint, Endpoint]
) -> None:
    survivor, other = ends
    with victim_process(backend_name, layout=LARGE) as victim:
        survivor.send(victim.address, attempt(1), [0])
        assert survivor.await_sent() == (attempt(1), "")
        victim.stop()
        survivor.send(victim.address, attempt(2), BIG)
        exchange(survivor, other, 3)
        transfer, error = survivor.await_sent()
        assert transfer == attempt(2) and error
        victim.resume()
        _send_until_taken(survivor, victim)


def test_a_sender_that_is_cut_off_fails_what_is_expected_of_it(
    backend_name: str, ends: tuple[Endpoint, Endpoint]
) -> None:
    survivor, other = ends
    with victim_process(backend_name, layout=LARGE) as victim:
        survivor.expect(attempt(1), [0, 1])
        victim.send(survivor.address, attempt(1), [3])
        assert survivor.await_progress() == (attempt(1), 1)
        assert victim.await_sent() == ""
        victim.stop()
        transfer, error = survivor.await_received()
        assert transfer == attempt(1) and "victim" in error
        exchange(survivor, other, 3)
        before = survivor.pool.clone()
        victim.resume()
        _receive_from(survivor, victim, [9])
        before[:, 9] = survivor.pool[:, 9]
        assert before.equal(survivor.pool), "what came late was written"


def test_a_restarted_peer_gets_new_links(
    backend_name: str, ends: tuple[Endpoint, Endpoint]
) -> None:
    """The peer comes back on another port, and then on the same one."""
    survivor, _ = ends
    port = 0
    for number in range(3):
        with victim_process(backend_name, port, LARGE) as victim:
            survivor.expect(attempt(number), [2])
            victim.send(survivor.address, attempt(number), [3])
            assert survivor.await_received() == (attempt(number), "")
            _send_until_taken(survivor, victim)
            port = int(victim.address.rpartition(":")[2])
            victim.kill()


def test_sixteen_peers_at_once_of_which_one_dies(backend_name: str) -> None:
    """Each peer sends to and receives from the same node."""
    num_peers = 4 if backend_name.startswith("nccl") else 15  # a pair over NCCL takes a second
    hub = Endpoint("hub", new_backend(here(backend_name)), num_pages=400)
    shared = new_backend(backend_name)
    peers = [Endpoint(f"peer{i}", shared) for i in range(num_peers)]
    try:
        with victim_process(backend_name) as victim:
            hub.expect(attempt(99), [399, 398])
            victim.send(hub.address, attempt(99), [3])
            assert hub.await_progress() == (attempt(99), 1)
            victim.kill()
            for i, peer in enumerate(peers):
                hub.expect(attempt(i), list(range(20 * i, 20 * i + 20)))
                peer.send(hub.address, attempt(i), list(range(20)))
                peer.expect(attempt(i), [40])
                hub.send(peer.address, attempt(i), [399])
        ends = dict(hub.await_received() for _ in range(num_peers + 1))
        assert "victim" in ends.pop(attempt(99))
        assert ends == {attempt(i): "" for i in range(num_peers)}
        for i, peer in enumerate(peers):
            assert peer.await_received() == (attempt(i), "")
            assert same(hub.pool[:, 20 * i : 20 * i + 20], peer.pool[:, :20])
    finally:
        for end in (hub, *peers):
            end.transport.close()


@pytest.mark.parametrize("victim_is", ["sender", "receiver"])
def test_a_peer_killed_while_bytes_flow(backend_name: str, victim_is: str) -> None:
    """The peer dies in the middle of a message, as a rule."""
    survivor = Endpoint("survivor", new_backend(here(backend_name)), layout=LARGE)
    transfers = [attempt(number) for number in range(100)]  # 13 GB: too much to end before it
    try:
        with victim_process(backend_name, layout=LARGE) as victim:
            for transfer in transfers:
                if victim_is == "sender":
                    survivor.expect(transfer, BIG)
                    victim.send(survivor.address, transfer, BIG)
                else:
                    survivor.send(victim.address, transfer, BIG)
            ended = survivor.received if victim_is == "sender" else survivor.sent
            ended.get(timeout=DEADLINE_S)
            victim.kill()
            while ended.get(timeout=DEADLINE_S)[1] == "":
                pass
    finally:
        survivor.transport.close()


def _send_until_taken(survivor: Endpoint, victim: Victim) -> None:
    """Sends again until it succeeds: a link may still have to notice that its other end is gone."""
    for _ in range(MAX_TRIES):
        survivor.send(victim.address, attempt(8), [0])
        if survivor.await_sent() == (attempt(8), ""):
            return
    raise AssertionError("the victim takes nothing")


def _receive_from(survivor: Endpoint, victim: Victim, pages: list[int]) -> None:
    """Asks a peer to send until it succeeds, as `_send_until_taken` does the other way round."""
    for number in range(10, 10 + MAX_TRIES):
        survivor.expect(attempt(number), pages)
        victim.send(survivor.address, attempt(number), [3])
        if victim.await_sent() == "":
            assert survivor.await_received() == (attempt(number), "")
            return
        survivor.transport.abort(attempt(number))
    raise AssertionError("nothing comes from the victim")
