"""Who is believed when a silent peer's health port is asked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvtransfer.links.peer_health import PeerHealth
from node.liveness.health_server import HealthServer
from protocol.ids import Node
from protocol.messages import Health
from protocol.trust.secrets import ClusterSecrets

PEER = Node("p0", 7)
OLD, NEW, WRONG = ("0123456789abcdef" + end for end in ("old", "new", "wrong"))


def known(*secrets: str) -> ClusterSecrets | None:
    return ClusterSecrets.of(secrets, "")


@contextmanager
def answering(secrets: ClusterSecrets | None) -> Iterator[str]:
    """The health port of a live node that knows these secrets."""
    health = Health(PEER.name, PEER.incarnation, "alive", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = HealthServer(listening, lambda: health, secrets)
        server.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("here", "there", "is_believed"),
    [
        ((), (), True),
        ((), (OLD,), True),
        ((OLD,), (OLD,), True),
        ((OLD, NEW), (NEW,), True),
        ((OLD,), (NEW, OLD), True),
        ((OLD,), (WRONG,), False),
        ((OLD,), (), False),
    ],
)
def test_only_who_knows_the_secret_is_believed(
    here: tuple[str, ...], there: tuple[str, ...], is_believed: bool
) -> None:
    with answering(known(*there)) as address:
        assert PeerHealth(PEER, address, known(*here)).is_alive() == is_believed


def test_another_incarnation_is_not() -> None:
    with answering(known(OLD)) as address:
        assert not PeerHealth(Node("p0", 8), address, known(OLD)).is_alive()
