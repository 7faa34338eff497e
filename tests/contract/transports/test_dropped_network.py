"""A peer behind a network of its own, which is then gone: no socket is closed, nothing arrives."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.transfer.endpoints import Endpoint, attempt, new_backend
from tests.support.transfer.peers import (
    BIG,
    LARGE,
    Elsewhere,
    await_lost_links,
    exchange,
    victim_process,
)

NAME = f"kvr{os.getpid()}"
HERE, THERE = "10.213.77.1", "10.213.77.2"


def ip(*words: str) -> bool:
    """Runs `ip` with these arguments; returns False if that is not allowed."""
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def network() -> Iterator[Elsewhere]:
    """Makes a network namespace that a virtual cable leads to. Its end on this side is called
    NAME."""
    if shutil.which("ip") is None or not ip("netns", "add", NAME):
        pytest.skip("needs `ip` and the right to make network namespaces")
    with ExitStack() as stack:
        stack.callback(ip, "netns", "del", NAME)
        stack.callback(ip, "link", "del", NAME)  # and its other end
        inside = ("netns", "exec", NAME, "ip")
        assert ip("link", "add", NAME, "type", "veth", "peer", "name", "there", "netns", NAME)
        assert ip("addr", "add", f"{HERE}/30", "dev", NAME)
        assert ip("link", "set", NAME, "up")
        assert ip(*inside, "addr", "add", f"{THERE}/30", "dev", "there")
        assert ip(*inside, "link", "set", "there", "up")
        yield Elsewhere(f"/run/netns/{NAME}", THERE)


@pytest.fixture
def ends() -> Iterator[tuple[Endpoint, Endpoint]]:
    """Makes a survivor that reaches the peer through the network, and another node beside it."""
    survivor = Endpoint("survivor", new_backend("tcp", HERE), layout=LARGE, host=HERE)
    other = Endpoint("other", new_backend("tcp"), layout=LARGE)
    yield survivor, other
    survivor.transport.close()
    other.transport.close()


def test_idle_links_end_and_others_go_on(
    network: Elsewhere, ends: tuple[Endpoint, Endpoint]
) -> None:
    survivor, other = ends
    with victim_process("tcp", layout=LARGE, elsewhere=network) as victim:
        survivor.expect(attempt(1), [0])
        victim.send(survivor.address, attempt(1), [3])
        assert survivor.await_received() == (attempt(1), "")
        survivor.send(victim.address, attempt(2), [0])
        assert survivor.await_sent() == (attempt(2), "")
        ip("link", "set", NAME, "down")
        await_lost_links(survivor, "victim")
        exchange(survivor, other, 3)


def test_a_transfer_under_way_fails_and_others_go_on(
    network: Elsewhere, ends: tuple[Endpoint, Endpoint]
) -> None:
    survivor, other = ends
    with victim_process("tcp", layout=LARGE, elsewhere=network) as victim:
        survivor.expect(attempt(1), [*BIG, *BIG])
        victim.send(survivor.address, attempt(1), BIG)
        assert survivor.await_progress()[0] == attempt(1)
        survivor.send(victim.address, attempt(2), [0])
        assert survivor.await_sent() == (attempt(2), "")
        ip("link", "set", NAME, "down")
        survivor.send(victim.address, attempt(4), BIG)  # more than the kernel would take
        exchange(survivor, other, 3)
        assert survivor.await_received()[1] != ""
        transfer, error = survivor.await_sent()
        assert transfer == attempt(4) and error
