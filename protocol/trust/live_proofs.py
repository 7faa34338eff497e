"""Proofs on the answers of health ports, for peers that go on waiting because of them.

The question brings a nonce, the answer a proof over nonce and body for each secret that is known.
"""

from __future__ import annotations

from protocol.trust.secrets import ClusterSecrets

PROOF_HEADER = "X-Kvrelay-Proofs"
MAX_NONCE_CHARACTERS = 64


def live_proofs(secrets: ClusterSecrets, nonce: str, body: bytes) -> list[str]:
    """Returns a proof of each secret, as hexadecimal text."""
    said = nonce.encode() + b"\0" + body
    return [keys.proof(b"live", said).hex() for keys in secrets.keys]
