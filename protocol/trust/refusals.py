"""`Refusals`: what this process refused of its peers: counted, and logged once per peer."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Literal

log = logging.getLogger(__name__)

RefusalKind = Literal["control", "data", "message"]
"""control and data: a connection to that port, whose peer has not proved that it knows the cluster
secret. message: one that cannot be believed, whoever sent it."""
MAX_NAMED = 1024
"""Peers that are remembered as named in the log; a flood of addresses must not fill it, nor the
memory."""


class Refusals:
    """Counts refusals. May be used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[RefusalKind] = Counter()
        self._named: set[tuple[RefusalKind, str]] = set()

    def refuse(self, kind: RefusalKind, peer: str, reason: str) -> None:
        """Counts the refusal of something that came from the host `peer`. The first of its kind is
        logged, with its reason."""
        with self._lock:
            self._counts[kind] += 1
            is_news = (kind, peer) not in self._named and len(self._named) < MAX_NAMED
            if is_news:
                self._named.add((kind, peer))
        if is_news:
            log.warning("refused %s (%s): %s; more of it is only counted", peer, kind, reason)

    @property
    def total(self) -> int:
        """How many refusals there were, of all kinds."""
        return self._counts.total()

    def count(self, kind: RefusalKind) -> int:
        """Returns how many refusals of this kind there were."""
        return self._counts[kind]
