"""A turn of a session whose beginning may have been recorded although nobody was told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.core.errors import Unavailable
from coordinator.http.sessions.turns import begin_turn
from coordinator.sessions.store import SessionHistory
from coordinator.sessions.turns import TurnRequest


class StoreWithoutReply:
    """Records a turn, and loses the reply."""

    def __init__(self) -> None:
        self.recorded: set[str] = set()

    async def read(self, asked: TurnRequest) -> SessionHistory:
        return SessionHistory(1000, [])

    async def begin(self, asked: TurnRequest, rid: str, *rest: Any) -> list[str]:
        self.recorded.add(rid)
        raise Unavailable("Redis does not answer")

    async def discard(self, session_id: str, rid: str) -> None:
        self.recorded.discard(rid)


def test_a_turn_whose_reply_was_lost_is_forgotten_so_that_it_can_be_sent_again() -> None:
    store = StoreWithoutReply()
    tokenizer = SimpleNamespace(bos_token_id=None, decode=lambda ids, skips: "x" * len(ids))
    service: Any = SimpleNamespace(sessions=store, tokenizer=tokenizer)
    asked = TurnRequest(
        session_id="tea", rid="", offset=0, replace=False, drop_previous_output=False
    )
    with pytest.raises(Unavailable):
        asyncio.run(begin_turn(service, asked, "one", [1, 2, 3]))
    assert store.recorded == set()
