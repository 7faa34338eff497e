"""The keys that all processes of a cluster derive from its secret. Pure.

BLAKE2b with a purpose of its own for each key, so that no key tells anything of another. A secret
must be long and random: nothing here makes guessing slow.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from hashlib import blake2b

MIN_SECRET_CHARACTERS = 16
MAKE_ONE = "`kvrelay secret FILE` makes one"
KEY_BYTES = 32
ID_BYTES = 4


@dataclass(frozen=True)
class ClusterKeys:
    """What one secret opens. Never printed."""

    id: str
    """Tells secrets apart without giving them away; it is part of control addresses."""
    listening: bytes = field(repr=False)
    """The Curve25519 secret key of whoever listens on a control port."""
    connecting: bytes = field(repr=False)
    """The Curve25519 secret key of whoever connects to one."""
    link: bytes = field(repr=False)
    """The key of the challenge on data ports."""

    @classmethod
    def of(cls, secret: str) -> ClusterKeys:
        """Returns the keys that `secret` opens."""
        return cls(
            id=_derived(secret, b"id", ID_BYTES).hex(),
            listening=_derived(secret, b"listening"),
            connecting=_derived(secret, b"connecting"),
            link=_derived(secret, b"link"),
        )

    def proof(self, role: bytes, transcript: bytes) -> bytes:
        """Returns what only a process with this secret can say in this role of a challenge, after
        these bytes were exchanged."""
        return hmac.digest(self.link, role + b"\0" + transcript, "sha256")


def _derived(secret: str, purpose: bytes, size: int = KEY_BYTES) -> bytes:
    return blake2b(secret.encode(), digest_size=size, person=b"kv-" + purpose).digest()
