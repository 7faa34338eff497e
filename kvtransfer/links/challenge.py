"""The first bytes on every connection to a data port: both ends prove that they know the secret.

    connecting                                        accepting
    MAGIC, ids of its secrets, nonce      ──►
                                          ◄──         id of the secret to prove (zeros: none), nonce
    proof over all of that                ──►         checks it; hangs up if it is wrong
    checks it                             ◄──         proof over all of that and of the other proof

Who connects proves first, so that nobody gets a proof for nothing. Each proof names its role, so
that none can be sent back to who made it. Without a secret at both ends there are no proofs. What
follows is not encrypted: see docs/security.md.
"""

from __future__ import annotations

import hmac
import os
import socket
import struct
from collections.abc import Callable

from kvtransfer.links.handshake import nobody_knows, receive_exactly, send_exactly
from kvtransfer.transport import PeerLost
from protocol.trust.keys import ID_BYTES, ClusterKeys
from protocol.trust.secrets import MAX_SECRETS, ClusterSecrets

MAGIC = b"kvrelay\x04"
"""Whoever speaks another version of these messages, or something else, sends other bytes."""
NONCE_BYTES = 32
PROOF_BYTES = 32
NO_ID = bytes(ID_BYTES)
CONNECTING, ACCEPTING = b"connecting", b"accepting"
_OPENING = struct.Struct(f"{len(MAGIC)}s {MAX_SECRETS * ID_BYTES}s {NONCE_BYTES}s")
_REPLY = struct.Struct(f"{len(MAGIC)}s {ID_BYTES}s {NONCE_BYTES}s")


class NotAdmitted(PeerLost):
    """The other end has not proved that it knows the cluster secret, or refuses us for that."""


def prove_as_connecting(
    connection: socket.socket,
    secrets: ClusterSecrets | None,
    is_peer_alive: Callable[[], bool] = nobody_knows,
) -> None:
    """Does the part of who connects. Raises NotAdmitted, or PeerLost for a peer that is silent."""
    known = secrets.keys if secrets is not None else ()
    ids = b"".join(bytes.fromhex(keys.id) for keys in known)
    opening = _OPENING.pack(MAGIC, ids, os.urandom(NONCE_BYTES))
    send_exactly(connection, opening)
    reply = receive_exactly(connection, _REPLY.size, is_peer_alive)
    magic, key_id, _ = _REPLY.unpack(reply)
    _require_magic(magic)
    keys = next((keys for keys in known if bytes.fromhex(keys.id) == key_id), None)
    if keys is None:
        if known or key_id != NO_ID:
            raise NotAdmitted(_differ(known, key_id))
        return
    proof = keys.proof(CONNECTING, opening + reply)
    send_exactly(connection, proof)
    theirs = receive_exactly(connection, PROOF_BYTES, is_peer_alive)
    if not hmac.compare_digest(theirs, keys.proof(ACCEPTING, opening + reply + proof)):
        raise NotAdmitted("the peer has not proved that it knows the cluster secret")


def prove_as_accepting(connection: socket.socket, secrets: ClusterSecrets | None) -> None:
    """Does the part of who accepts. Raises NotAdmitted, or PeerLost for a peer that is silent."""
    opening = receive_exactly(connection, _OPENING.size)
    magic, ids, _ = _OPENING.unpack(opening)
    _require_magic(magic)
    offered = {ids[i : i + ID_BYTES] for i in range(0, len(ids), ID_BYTES)} - {NO_ID}
    known = secrets.keys if secrets is not None else ()
    keys = next((keys for keys in known if bytes.fromhex(keys.id) in offered), None)
    key_id = bytes.fromhex(keys.id) if keys is not None else NO_ID
    if keys is None and known and not offered:
        # Told by an id that it lacks: it must not take us for one without a secret.
        key_id = bytes.fromhex(known[0].id)
    reply = _REPLY.pack(MAGIC, key_id, os.urandom(NONCE_BYTES))
    send_exactly(connection, reply)
    if keys is None:
        if known or offered:
            raise NotAdmitted(_differ(known, next(iter(offered), NO_ID)))
        return
    proof = receive_exactly(connection, PROOF_BYTES)
    if not hmac.compare_digest(proof, keys.proof(CONNECTING, opening + reply)):
        raise NotAdmitted("it has not proved that it knows the cluster secret")
    send_exactly(connection, keys.proof(ACCEPTING, opening + reply + proof))


def _require_magic(magic: bytes) -> None:
    if magic != MAGIC:
        raise NotAdmitted("it is no kvrelay node of this version")


def _differ(known: tuple[ClusterKeys, ...], key_id: bytes) -> str:
    """Returns why there is no secret that both ends know, as half a sentence with the remedy."""
    here = "another cluster secret" if known else "no cluster secret"
    there = "one" if key_id != NO_ID else "none"
    return f"{here} here, {there} there: all nodes need the same --cluster-secret-file"
