"""`Peers`: the other coordinators, and whether the cluster generates, as Redis knows both."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec
from redis.exceptions import InvalidResponse

from coordinator.core.errors import Unavailable
from coordinator.core.pause import Pause
from protocol.messages import PauseMode
from protocol.redis.client import REDIS_ERRORS
from protocol.redis.coordinators import KEYS, LIST_COORDINATORS, SpokenWith
from protocol.redis.ownership import text_of
from protocol.redis.pause import PAUSE_KEY, READ_PAUSE, SET_PAUSE

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
DEADLINE_S = 2.0


class Peers:
    """Looks now and then who the other coordinators are and whether there is a pause. While Redis
    is gone, what was seen last stays true."""

    def __init__(
        self, redis: Any, address: str, pause: Callable[[], Pause], obey: Callable[[Pause], None]
    ) -> None:
        """`redis` is a client as `connect_async` makes them. It stays the caller's to close.
        `pause` tells the newest state that is known here; `obey` takes the one in Redis."""
        self.others: frozenset[str] = frozenset()
        """Where the other coordinators receive messages."""
        self._address = address
        self._pause = pause
        self._obey = obey
        self._read = redis.register_script(READ_PAUSE)
        self._set = redis.register_script(SET_PAUSE)
        self._list = redis.register_script(LIST_COORDINATORS)
        self._spoken_with = SpokenWith()
        self._is_stopping = False

    async def run(self) -> None:
        """Looks until `stop` is called or it is cancelled."""
        while not self._is_stopping:
            try:
                await self.look()
            except REDIS_ERRORS as error:
                # The one who follows page ownership says so in the log.
                log.debug("the other coordinators are unknown: %s", error)
            await asyncio.sleep(LOOK_EVERY_S)

    def stop(self) -> None:
        """Lets `run` end: before Python 3.12 `asyncio.wait_for` may drop a cancellation."""
        self._is_stopping = True

    async def look(self) -> None:
        """Asks Redis now. Raises one of REDIS_ERRORS."""
        known = self._pause()
        read = self._read(keys=[PAUSE_KEY], args=[known.number, known.mode or ""])
        (number, mode), listed = await asyncio.wait_for(
            asyncio.gather(read, self._list(keys=KEYS)), DEADLINE_S
        )
        self.others = frozenset(self._spoken_with.among(listed)) - {self._address}
        try:
            self._obey(Pause(int(number), msgspec.convert(text_of(mode) or None, PauseMode | None)))
        except ValueError as error:
            raise InvalidResponse(f"what Redis has of pauses makes no sense: {error}") from error

    async def set_pause(self, mode: PauseMode | None) -> Pause:
        """Begins a pause of the whole cluster, or ends it (None). Returns the new state. Raises
        Unavailable, and then nothing is changed, unless Redis was lost after it had heard."""
        try:
            number = await asyncio.wait_for(
                self._set(keys=[PAUSE_KEY], args=[mode or "", self._pause().number]), DEADLINE_S
            )
            await self.look()  # coordinators that have just come must be told too
        except REDIS_ERRORS as error:
            reason = str(error) or f"no answer within {DEADLINE_S:g} s"
            raise Unavailable(
                f"a pause is agreed on in Redis, which cannot be reached: {reason}"
            ) from error
        return Pause(int(number), mode)
