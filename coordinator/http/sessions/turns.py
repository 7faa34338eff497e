"""A prompt that is a turn of a session: begun before it is computed, ended before it is shown."""

from __future__ import annotations

import asyncio
import logging
import secrets

from coordinator.answers.answer import Answer
from coordinator.answers.tokenizer import Tokenizer
from coordinator.core.errors import Unavailable
from coordinator.http.errors import BadRequest
from coordinator.service import Service
from coordinator.sessions.store import SessionStore
from coordinator.sessions.turns import TurnRequest, kept_tokens, without_bos

log = logging.getLogger(__name__)

LONG_PROMPT = 1_000
"""Tokens from which a prompt's text is made on another thread."""


class Turn:
    """A turn that has begun. `end` must be called, or `discard` if it is not computed after all;
    otherwise no other turn can follow it."""

    def __init__(self, store: SessionStore, session_id: str, rid: str, prompt: list[int]) -> None:
        self.rid = rid
        self.prompt = prompt
        """The tokens that it keeps of earlier turns, and its own."""
        self._store = store
        self._session_id = session_id
        self._has_ended = False

    async def end(self, answer: Answer) -> None:
        """Notes the answer, so that any coordinator can go on from it. Does nothing the second
        time. A turn whose client is told an error is forgotten, so that it can be tried again.

        If Redis is gone the session gets the answer when it is back.
        """
        if self._has_ended:
            return
        self._has_ended = True
        if answer.error is not None and answer.error.kind != "client_left":
            return await self.discard()
        try:
            await self._store.end(self._session_id, self.rid, answer.output_ids)
        except Unavailable as error:
            log.warning("the end of turn %s is noted when Redis is back: %s", self.rid, error)

    async def discard(self) -> None:
        """Forgets the turn."""
        try:
            await self._store.discard(self._session_id, self.rid)
        except Unavailable as error:
            log.warning("turn %s is forgotten when Redis is back: %s", self.rid, error)


async def begin_turn(
    service: Service, asked: TurnRequest, rid: str | None, tokens: list[int]
) -> Turn:
    """Begins the turn `rid`, or one whose rid is made up, with a prompt of `tokens` after what it
    goes on from. Turns that it replaces and that run are aborted, wherever they are.

    Raises SessionRefused, Unavailable, or BadRequest if the whole prompt is too long for the
    session.
    """
    store, tokenizer = service.sessions, service.tokenizer
    history = await store.read(asked)
    kept = kept_tokens(history.chain, asked)
    new = without_bos(tokens, tokenizer.bos_token_id) if asked.rid else tokens
    prompt = kept + new
    if not prompt:
        raise BadRequest("the prompt is empty", "session_params.offset")
    await _check_capacity(prompt, history.capacity, tokenizer)
    turn = Turn(store, asked.session_id, rid or secrets.token_hex(16), prompt)
    try:
        replaced = await store.begin(asked, turn.rid, len(kept), new)
    except Unavailable:
        await turn.discard()  # it may be recorded, and only the reply be lost
        raise
    for rid_of_replaced in replaced:
        service.abort(rid_of_replaced)
    return turn


async def _check_capacity(prompt: list[int], capacity: int, tokenizer: Tokenizer) -> None:
    if len(prompt) > LONG_PROMPT:
        text = await asyncio.to_thread(tokenizer.decode, prompt, False)
    else:
        text = tokenizer.decode(prompt, False)
    if len(text) > capacity:
        raise BadRequest(
            f"the prompt has {len(text)} characters with the earlier turns; the session was opened "
            f"for capacity_of_str_len {capacity}",
            "session_params",
        )
