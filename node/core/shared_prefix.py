"""Prompts that begin alike and are here at once: their common pages are computed, or travel, once.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.cache.prefix_cache import PrefixCache
from protocol.hashing import PageHash

MAX_LOOKED_AT = 32
"""How many of the prompts that wait are looked at before each step."""


def next_page_is_coming(
    cache: PrefixCache, reusable: Sequence[PageHash], others: Iterable[Sequence[PageHash]]
) -> bool:
    """Returns True if the first page that a prompt lacks is one that a prompt of `others` has as
    well.

    `reusable` are the hashes of pages that the prompt may hit; `others` are the chains of prompts
    that are being computed or received. Such a page can be found as soon as their chunk is done or
    the page has arrived, so it is worth waiting for.
    """
    position = len(cache.find(reusable))
    if position == len(reusable):
        return False
    return any(len(o) > position and o[position] == reusable[position] for o in others)
