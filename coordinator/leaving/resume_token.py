"""`ResumeToken`: what lets a client get its running answer from another coordinator. Pure.

It carries all that the other coordinator must know and cannot: which coordinator had the request,
the seed of the answer, and the secret by which nodes know whose tokens they may give. Nothing of it
is recorded anywhere but at the node that answers. A forged one gets nothing but an answer that is
computed anew, as any request does.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, replace

import msgspec

from coordinator.answers.request import Request
from protocol.hashing import token_bytes
from protocol.ids import coordinator_tag
from protocol.trust.bounds import Digest, Key, Seed

DIGEST_BYTES = 16
MAX_TOKEN_LENGTH = 512


class InvalidResumeToken(ValueError):
    """The text is no resume token, or one of another request."""


class _Parts(msgspec.Struct, array_like=True, frozen=True):
    owner_tag: Digest
    key: Key
    seed: Seed
    digest: Digest


@dataclass(frozen=True)
class ResumeToken:
    """The parts of a token."""

    owner_tag: bytes
    """`coordinator_tag` of the coordinator that had the request."""
    key: str
    """The secret; see `Generate.resume_key`."""
    seed: int
    """The seed of the answer, which the coordinator made up if the client gave none."""
    digest: bytes
    """Tells whether a request is the one that the token was made for."""

    @classmethod
    def of(cls, request: Request, rid: str, address: str) -> ResumeToken:
        """Returns the token of a request that the coordinator at `address` has by the name
        `rid`."""
        tag = coordinator_tag(address)
        return cls(tag, request.resume_key, request.sampling.seed, _digest(request, rid))

    @classmethod
    def parse(cls, text: str) -> ResumeToken:
        """Returns the token that `text` is. Raises InvalidResumeToken."""
        try:
            raw = base64.urlsafe_b64decode(text[:MAX_TOKEN_LENGTH])
            parts = msgspec.msgpack.decode(raw, type=_Parts)
        except ValueError as error:
            raise InvalidResumeToken("it is no resume token of a stream") from error
        return cls(parts.owner_tag, parts.key, parts.seed, parts.digest)

    @property
    def text(self) -> str:
        """The token as clients see it."""
        parts = _Parts(self.owner_tag, self.key, self.seed, self.digest)
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(parts)).decode("ascii")

    def resumed(self, request: Request) -> Request:
        """Returns `request`, which has a rid, with the seed of its first time. Raises
        InvalidResumeToken if it is not the one that the token was made for."""
        again = replace(request, sampling=msgspec.structs.replace(request.sampling, seed=self.seed))
        if _digest(again, again.rid) != self.digest:
            raise InvalidResumeToken(
                "it was made for another request: rid, prompt and parameters must be the same"
            )
        return again


def _digest(request: Request, rid: str) -> bytes:
    """Returns what differs for any two requests whose answers may differ. Their longest length is
    left out: it follows from the room that nodes have, if the client does not give it."""
    sampling = msgspec.structs.replace(request.sampling, max_new_tokens=0)
    stops = (*request.stop_strings, "", *request.stop_patterns, str(request.keeps_stop))
    named = (rid, sampling, tuple(request.end_token_ids), request.namespace, stops)
    digest = hashlib.blake2b(msgspec.msgpack.encode(named), digest_size=DIGEST_BYTES)
    digest.update(token_bytes(request.tokens))
    return digest.digest()
