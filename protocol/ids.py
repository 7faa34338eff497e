"""Identities: which node, at which addresses, and which attempt of which request. Pure."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import msgspec

from protocol.trust.bounds import Count, Incarnation, Name

Role = Literal["prefill", "decode"]


class Node(msgspec.Struct, frozen=True, order=True, cache_hash=True):
    """One incarnation of a node: the process from its start to its end.

    A node that is started again under the same name is another `Node`, which owns no page.
    """

    name: Name
    incarnation: Incarnation
    """The wall clock at the start, in nanoseconds: of two incarnations the greater is newer."""

    def __str__(self) -> str:
        return f"{self.name}@{self.incarnation % 1_000_000:06d}"


class Addresses(NamedTuple):
    """Where a node hears from others, as host:port."""

    control: str
    """The address of its channel, for messages."""
    data: tuple[str, ...]
    """The addresses of its transports, for KV pages: one per rank, in the order of ranks."""


class Attempt(msgspec.Struct, frozen=True, order=True):
    """One try to answer a request. Messages of an older attempt are dropped.

    It also names the transfer of the pages that travel for it.
    """

    request_id: Name
    number: Count
    """Counts the attempts of the request; a later one has a greater number."""

    def superseded_by(self, other: Attempt) -> bool:
        """Returns True if `other` is this attempt or a later one of the same request."""
        return self.request_id == other.request_id and self.number <= other.number

    def __str__(self) -> str:
        return f"{self.request_id}#{self.number}"


TAG_BYTES = 8


def coordinator_tag(address: str) -> bytes:
    """Returns what stands for a coordinator's address where clients may see it."""
    return hashlib.blake2b(address.encode(), digest_size=TAG_BYTES).digest()
