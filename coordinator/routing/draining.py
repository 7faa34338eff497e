"""Which nodes get no new requests, by the marks that Redis has of their names. Pure.

A node drains as the process that it is: when it starts again under its name, it has the mark of
another incarnation, and gets requests, unless the mark is to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coordinator.routing.registry import LiveNode
from protocol.redis.ownership import KEEPS_DRAINING


def draining_names(marks: Mapping[str, str], live: Iterable[LiveNode]) -> frozenset[str]:
    """Returns the names of the live nodes that drain."""
    return frozenset(
        one.node.name
        for one in live
        if marks.get(one.node.name) in (KEEPS_DRAINING, str(one.node.incarnation))
    )
