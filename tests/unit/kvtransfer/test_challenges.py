"""The challenge on data ports: who proves what to whom, and what becomes of those who cannot."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvtransfer.links.challenge import (
    _OPENING,
    _REPLY,
    MAGIC,
    NO_ID,
    PROOF_BYTES,
    NotAdmitted,
    prove_as_accepting,
    prove_as_connecting,
)
from kvtransfer.transport import PeerLost
from protocol.trust.keys import ClusterKeys
from protocol.trust.secrets import ClusterSecrets

OLD, NEW, WRONG = ("0123456789abcdef" + end for end in ("old", "new", "wrong"))
TIMEOUT_S = 20.0


def outcomes(
    connecting: ClusterSecrets | None, accepting: ClusterSecrets | None
) -> tuple[Exception | None, Exception | None]:
    """What both ends raise."""
    here, there = socket.socketpair()
    with here, there, ThreadPoolExecutor(1) as pool:
        here.settimeout(TIMEOUT_S)
        there.settimeout(TIMEOUT_S)

        def accept() -> Exception | None:
            try:
                prove_as_accepting(there, accepting)
            except PeerLost as error:
                there.shutdown(socket.SHUT_RDWR)
                return error
            return None

        other = pool.submit(accept)
        mine: Exception | None = None
        try:
            prove_as_connecting(here, connecting)
        except PeerLost as error:
            mine = error
            here.shutdown(socket.SHUT_RDWR)
        return mine, other.result(TIMEOUT_S)


def known(*secrets: str) -> ClusterSecrets | None:
    return ClusterSecrets.of(secrets, "")


@pytest.mark.parametrize(
    ("connecting", "accepting"),
    [
        ((), ()),
        ((OLD,), (OLD,)),
        ((OLD, NEW), (NEW, OLD)),
        ((NEW, OLD), (OLD,)),
        ((OLD,), (NEW, OLD)),
    ],
)
def test_those_who_share_a_secret_or_have_none_meet(
    connecting: tuple[str, ...], accepting: tuple[str, ...]
) -> None:
    assert outcomes(known(*connecting), known(*accepting)) == (None, None)


@pytest.mark.parametrize(
    ("connecting", "accepting"),
    [((WRONG,), (OLD,)), ((), (OLD,)), ((OLD,), ()), ((NEW,), (OLD, WRONG))],
)
def test_others_do_not_and_both_say_what_to_do(
    connecting: tuple[str, ...], accepting: tuple[str, ...]
) -> None:
    mine, theirs = outcomes(known(*connecting), known(*accepting))
    assert isinstance(theirs, NotAdmitted) and "--cluster-secret-file" in str(theirs)
    assert isinstance(mine, NotAdmitted) and "--cluster-secret-file" in str(mine)


def opening(key_id: bytes) -> bytes:
    return _OPENING.pack(MAGIC, key_id, bytes(32))


def answer_to(said: bytes, then: bytes = b"") -> tuple[bytes, Exception | None]:
    """What an honest listener that knows OLD answers to somebody who says this, in two parts, and
    how it takes it."""
    here, there = socket.socketpair()
    with here, there, ThreadPoolExecutor(1) as pool:
        there.settimeout(TIMEOUT_S)
        here.settimeout(TIMEOUT_S)

        def accept() -> Exception | None:
            try:
                prove_as_accepting(there, known(OLD))
            except PeerLost as error:
                return error
            finally:
                there.shutdown(socket.SHUT_WR)
            return None

        other = pool.submit(accept)
        here.sendall(said)
        reply = b""
        while len(reply) < _REPLY.size and (part := here.recv(_REPLY.size)):
            reply += part
        here.sendall(then)
        here.shutdown(socket.SHUT_WR)
        while part := here.recv(4096):
            reply += part
        return reply, other.result(TIMEOUT_S)


OLD_ID = bytes.fromhex(ClusterKeys.of(OLD).id)


def test_who_cannot_prove_learns_nothing_that_is_a_proof() -> None:
    for then in (b"", bytes(PROOF_BYTES), bytes(PROOF_BYTES - 1)):
        reply, error = answer_to(opening(OLD_ID), then)
        assert len(reply) == _REPLY.size, "an id and a nonce, and no proof"
        assert isinstance(error, PeerLost)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n" * 20, bytes(_OPENING.size)])
def test_who_says_something_else_is_not_admitted(said: bytes) -> None:
    reply, error = answer_to(said)
    assert reply == b"" and isinstance(error, NotAdmitted)


def test_a_proof_cannot_be_sent_back_to_who_made_it() -> None:
    """The attacker accepts a connection of a node, and answers with that node's own proof."""
    here, there = socket.socketpair()
    with here, there, ThreadPoolExecutor(1) as pool:
        here.settimeout(TIMEOUT_S)
        there.settimeout(TIMEOUT_S)
        honest = pool.submit(prove_as_connecting, here, known(OLD))
        there.recv(_OPENING.size, socket.MSG_WAITALL)
        there.sendall(_REPLY.pack(MAGIC, OLD_ID, bytes(32)))
        there.sendall(there.recv(PROOF_BYTES, socket.MSG_WAITALL))
        assert isinstance(honest.exception(TIMEOUT_S), NotAdmitted)


def test_one_who_listens_without_the_secret_cannot_talk_it_down() -> None:
    here, there = socket.socketpair()
    with here, there, ThreadPoolExecutor(1) as pool:
        here.settimeout(TIMEOUT_S)
        honest = pool.submit(prove_as_connecting, here, known(OLD))
        there.recv(_OPENING.size, socket.MSG_WAITALL)
        there.sendall(_REPLY.pack(MAGIC, NO_ID, bytes(32)))
        assert isinstance(honest.exception(TIMEOUT_S), NotAdmitted)
