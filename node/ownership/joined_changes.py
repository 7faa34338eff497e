"""Changes of a node's pages, as they are written to Redis: neither many small ones nor one that is
too long. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.cache.prefix_cache import CacheChange
from protocol.hashing import PageHash
from protocol.redis.ownership import HASHES_PER_CHANGE


def joined_changes(changes: Sequence[CacheChange]) -> Iterator[CacheChange]:
    """Yields fewer, longer changes with the same effect, since one call to Redis per change is slow
    when changes pile up.

    A change is applied as a whole, so nobody sees what a page was in between, and the set is
    prefix-closed after each, as it was in the node.
    """
    owned: dict[PageHash, bool] = {}
    for change in (piece for each in changes for piece in _pieces(each)):
        num_hashes = len(change.removed) + len(change.stored)
        if owned and len(owned) + num_hashes > HASHES_PER_CHANGE:
            yield _change_to(owned)
            owned = {}
        owned.update(dict.fromkeys(change.removed, False))
        owned.update(dict.fromkeys(change.stored, True))
    if owned:
        yield _change_to(owned)


def _pieces(change: CacheChange) -> Iterator[CacheChange]:
    """Yields a long change, such as a flush, in pieces. They remove children before parents and
    store parents before children, so the set is prefix-closed after each piece."""
    for start in range(0, len(change.removed), HASHES_PER_CHANGE):
        yield CacheChange(change.removed[start : start + HASHES_PER_CHANGE], [])
    for start in range(0, len(change.stored), HASHES_PER_CHANGE):
        yield CacheChange([], change.stored[start : start + HASHES_PER_CHANGE])


def _change_to(owned: dict[PageHash, bool]) -> CacheChange:
    return CacheChange(
        removed=[page_hash for page_hash, is_owned in owned.items() if not is_owned],
        stored=[page_hash for page_hash, is_owned in owned.items() if is_owned],
    )
