"""How far a prompt is what some node owns already, and where it leaves that. Pure.

A prompt that goes its own way after a few pages has, as a rule, something in its beginning that is
new each time: a date, a name, an id. Whatever stands behind it is computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.ownership.index import PrefixIndex
from protocol.hashing import PageHash
from protocol.ids import Node

EARLY_TOKENS = 256


@dataclass(frozen=True)
class SharedPath:
    """The longest beginning of a prompt, in whole pages, that one node owns."""

    num_tokens: int
    owners: Sequence[Node]
    """Those that own all of it; empty if `num_tokens` is 0."""
    is_left: bool
    """The prompt has another whole page, which none of the owners has."""


def shared_path(hashes: Sequence[PageHash], page_size: int, index: PrefixIndex) -> SharedPath:
    """Returns the path of a prompt with these whole pages."""
    depths = index.match(hashes)
    longest = max(depths.values(), default=0)
    owners = [node for node, depth in depths.items() if depth == longest]
    return SharedPath(longest * page_size, owners, is_left=longest < len(hashes))


def diverges_early(hashes: Sequence[PageHash], page_size: int, index: PrefixIndex) -> bool:
    """Returns True if some node owns the first page of a prompt, and none all of its whole pages
    that begin before EARLY_TOKENS. It takes two look-ups, as who owns a page owns all before it."""
    if not hashes or not index.has_owner(hashes[0]):
        return False
    last = min(len(hashes), max(1, EARLY_TOKENS // page_size)) - 1
    return not index.has_owner(hashes[last])
