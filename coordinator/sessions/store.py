"""`SessionStore`: sessions in Redis, read and written within a deadline."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from coordinator.core.errors import RequestRefused, Unavailable
from coordinator.sessions.turns import TurnRecord, TurnRequest
from coordinator.sessions.unwritten import UnwrittenTurns
from protocol.hashing import token_bytes, tokens_from_bytes
from protocol.redis import sessions
from protocol.redis.client import REDIS_ERRORS

log = logging.getLogger(__name__)

DEADLINE_S = 2.0
MAX_TURNS = 1_000
"""The most turns of a session."""
MAX_BYTES = 16 << 20
"""The most bytes of tokens of all turns of a session."""
MAX_UNSURE = 1_000
"""How many sessions are remembered of which nobody knows whether they were opened."""
CATCH_UP_EVERY_S = 0.5

Result = TypeVar("Result")


class SessionRefused(RequestRefused):
    """The session does not take this turn."""


@dataclass(frozen=True)
class SessionHistory:
    """A session as far as one turn needs it."""

    capacity: int
    """The most characters that a prompt may have."""
    chain: Sequence[TurnRecord]
    """The turn that was asked for, which has ended, after all that it follows; empty if none
    was."""


class SessionStore:
    """Keeps sessions. Every method raises Unavailable if Redis does not answer within
    DEADLINE_S."""

    def __init__(self, redis: Any, ttl_s: float) -> None:
        """`redis` is a client as `connect_async` makes them. It stays the caller's to close. A
        session that was not used for `ttl_s` is forgotten."""
        self._redis = redis
        self._ttl_ms = int(ttl_s * 1_000)
        self._open = redis.register_script(sessions.OPEN)
        self._read = redis.register_script(sessions.READ)
        self._begin = redis.register_script(sessions.BEGIN)
        self._end = redis.register_script(sessions.END)
        self._discard = redis.register_script(sessions.DISCARD)
        self._unwritten = UnwrittenTurns()
        self._unsure: dict[str, str] = {}
        """Who opened the sessions of which Redis has not said whether they are open."""

    async def open(self, session_id: str, capacity: int) -> bool:
        """Opens a session. Returns False if one of this name is open. After Unavailable it may be
        open all the same, and the next try finds its own session."""
        opener = self._unsure.pop(session_id, "") or secrets.token_hex(8)
        try:
            return bool(await self._run(self._open, session_id, capacity, opener))
        except Unavailable:
            self._unsure[session_id] = opener
            while len(self._unsure) > MAX_UNSURE:
                del self._unsure[next(iter(self._unsure))]
            raise

    async def catch_up_for_ever(self) -> None:
        """Tells Redis, when it is back, of the turns that have ended meanwhile."""
        while True:
            await asyncio.sleep(CATCH_UP_EVERY_S)
            for (session_id, rid), answer in self._unwritten.of(None).items():
                try:
                    await self._tell(session_id, rid, answer)
                except Unavailable as error:
                    log.debug("turn %s waits for Redis: %s", rid, error)

    async def close(self, session_id: str) -> None:
        """Forgets a session. Does nothing if there is none; turns that run go on."""
        await _in_time(self._redis.unlink(_key(session_id)))

    async def read(self, asked: TurnRequest) -> SessionHistory:
        """Returns what the next turn needs. Raises SessionRefused if the session or the earlier
        turn is unknown, or if that turn has not ended."""
        for (session_id, rid), answer in self._unwritten.of(asked.session_id).items():
            await self._tell(session_id, rid, answer)
        reply = await self._run(self._read, asked.session_id, asked.rid)
        if reply is None:
            raise _no_session(asked)
        capacity, turns = reply
        if asked.rid and not turns:
            raise _no_turn(asked)
        if any(answer is None for _, _, answer in turns):
            raise _still_running(asked)
        try:
            chain = [
                TurnRecord(int(kept), tokens_from_bytes(new), tokens_from_bytes(answer))
                for kept, new, answer in reversed(turns)
            ]
            return SessionHistory(int(capacity), chain)
        except ValueError as error:
            raise SessionRefused(
                f"what Redis has of session {asked.session_id!r} makes no sense ({error}); open "
                "another one"
            ) from error

    async def begin(
        self, asked: TurnRequest, rid: str, num_kept: int, new: Sequence[int]
    ) -> list[str]:
        """Begins the turn `rid`: `num_kept` tokens of the earlier turn and `new` are its prompt.

        Returns the turns that it has replaced and that have not ended. Raises SessionRefused.
        """
        args = (rid, asked.rid, num_kept, token_bytes(new), int(asked.replace))
        status, *details = await self._run(
            self._begin, asked.session_id, *args, MAX_TURNS, MAX_BYTES
        )
        if status == b"ok":
            return [name.decode() for name in details]
        if status == b"no session":
            raise _no_session(asked)
        if status == b"no parent":
            raise _no_turn(asked)
        if status == b"running":
            raise _still_running(asked)
        if status == b"known":
            raise SessionRefused(f"session {asked.session_id!r} has a turn with rid {rid!r}")
        limit = f"{MAX_TURNS} turns" if status == b"many turns" else f"{MAX_BYTES} bytes"
        raise SessionRefused(
            f"session {asked.session_id!r} has {limit} at most, and would have "
            f"{int(details[0]) + (status == b'many turns')}; replace turns, or open another session"
        )

    async def end(self, session_id: str, rid: str, answer: Sequence[int]) -> None:
        """Notes the answer of a turn. Does nothing if the turn was replaced or its session closed.
        After Unavailable it is noted when Redis is back."""
        await self._tell(session_id, rid, token_bytes(answer))

    async def discard(self, session_id: str, rid: str) -> None:
        """Forgets a turn that was begun and is not computed after all; after Unavailable when Redis
        is back."""
        await self._tell(session_id, rid, None)

    async def _tell(self, session_id: str, rid: str, answer: bytes | None) -> None:
        """Notes the end of a turn, and keeps it until Redis has heard. Raises Unavailable."""
        self._unwritten.add(session_id, rid, answer)
        if answer is None:
            await self._run(self._discard, session_id, rid)
        else:
            await self._run(self._end, session_id, rid, answer)
        self._unwritten.written(session_id, rid)

    async def _run(self, script: Any, session_id: str, *args: object) -> Any:
        return await _in_time(script(keys=[_key(session_id)], args=[self._ttl_ms, *args]))


async def _in_time(call: Awaitable[Result]) -> Result:
    try:
        return await asyncio.wait_for(call, DEADLINE_S)
    except REDIS_ERRORS as error:
        reason = str(error) or f"no answer within {DEADLINE_S:g} s"
        raise Unavailable(
            f"sessions are kept in Redis, which cannot be reached: {reason}"
        ) from error


def _key(session_id: str) -> str:
    return sessions.SESSION_PREFIX + session_id


def _no_session(asked: TurnRequest) -> SessionRefused:
    return SessionRefused(
        f"there is no session {asked.session_id!r}: it was never opened, was closed, or was not "
        "used for too long"
    )


def _no_turn(asked: TurnRequest) -> SessionRefused:
    return SessionRefused(f"session {asked.session_id!r} has no turn with rid {asked.rid!r}")


def _still_running(asked: TurnRequest) -> SessionRefused:
    return SessionRefused(
        f"the turn {asked.rid!r} of session {asked.session_id!r} has not ended; wait for its end, "
        "abort it, or replace it"
    )
