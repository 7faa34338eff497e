"""`LiveFeed`: snapshots of the cluster for those who look, and none when nobody does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from coordinator.core.hot_prefixes import HotPrefix
from coordinator.http.wire.events import event_of
from coordinator.live.snapshot import LiveView, Surroundings
from coordinator.service import Service
from protocol.trust.versions import RELEASE

INTERVAL_S = 1.0
MAX_LISTENERS = 16
IDLE_S = 5 * INTERVAL_S
"""When nobody has looked for so long, the moving minute begins anew."""


class LiveFeed:
    """Gives each listener an event about once in INTERVAL_S. All of them share one snapshot."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._view = LiveView()
        self._event = b""
        self._made_at = float("-inf")
        self.num_listeners = 0

    @property
    def is_full(self) -> bool:
        """True while no more listeners are taken."""
        return self.num_listeners >= MAX_LISTENERS

    async def events(self, num_snapshots: int = 0) -> AsyncIterator[bytes]:
        """Gives snapshots as server-sent events until the listener leaves or the coordinator ends,
        or `num_snapshots` of them if that is not 0."""
        self.num_listeners += 1
        try:
            num_given = 0
            while not self._service.may_close:
                yield self._current()
                num_given += 1
                if num_given == num_snapshots:
                    return
                await asyncio.sleep(INTERVAL_S)
        finally:
            self.num_listeners -= 1

    def _current(self) -> bytes:
        """Returns the newest snapshot, or a new one if that is old."""
        now = self._service.now()
        age_s = now - self._made_at
        if age_s > IDLE_S:
            self._view.restart()
        # Timers of several listeners differ by a little.
        if age_s > 0.5 * INTERVAL_S:
            around = _surroundings(self._service)
            snapshot = self._view.snapshot(self._service.core, around, now, time.time())
            self._event, self._made_at = event_of(snapshot), now
        return self._event


def _surroundings(service: Service) -> Surroundings:
    config, mirror = service.config, service.follower.mirror

    def words_of(prefix: HotPrefix) -> str | None:
        if prefix.is_salted or not config.show_prompt_words:
            return None
        return service.tokenizer.decode(prefix.first_tokens, True)

    return Surroundings(
        coordinator=service.address,
        version=RELEASE,
        model=config.served_model_name,
        policy=config.policy,
        num_coordinators=service.num_coordinators,
        is_connected=mirror.is_connected,
        lag_s=mirror.lag_s,
        max_ttft_s=config.max_ttft,
        words_of=words_of,
    )
