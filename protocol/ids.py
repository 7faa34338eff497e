"""Identities: who a node is and which try of a request a message belongs to. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

Role = Literal["prefill", "decode"]


class Node(msgspec.Struct, frozen=True, order=True, cache_hash=True):
    """One life of one node process. A restarted node is another `Node`.

    `incarnation` grows with every start (nanoseconds of the wall clock at start), so the newer of
    two lives of one name is known.
    """

    name: str
    incarnation: int

    def __str__(self) -> str:
        return f"{self.name}@{self.incarnation % 1_000_000:06d}"


class Addresses(NamedTuple):
    """Where a node hears from others."""

    control: str
    """For messages."""
    data: tuple[str, ...]
    """For KV pages: one per rank of the node, in order."""


class Attempt(msgspec.Struct, frozen=True, order=True):
    """One try of one request; messages of an older attempt are dropped."""

    request_id: str
    number: int

    def superseded_by(self, other: Attempt) -> bool:
        """True for the same and for every older attempt of the same request."""
        return self.request_id == other.request_id and self.number <= other.number

    def __str__(self) -> str:
        return f"{self.request_id}#{self.number}"
