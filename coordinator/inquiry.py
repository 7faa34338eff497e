"""`Inquiries`: questions to nodes whose answers are waited for."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Inquiry:
    expected: set[str]
    answers: dict[str, Any] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)


class Inquiries:
    """`open` gives an id to send along, `answered` takes what nodes reply, `wait` collects it."""

    def __init__(self) -> None:
        self._open: dict[str, _Inquiry] = {}

    def open(self, names: Iterable[str]) -> str:
        """A question to the nodes of these names; must be waited for."""
        inquiry_id = uuid.uuid4().hex
        inquiry = self._open[inquiry_id] = _Inquiry(set(names))
        if not inquiry.expected:
            inquiry.complete.set()
        return inquiry_id

    def answered(self, inquiry_id: str, name: str, answer: Any) -> None:
        """Late and unknown answers are dropped."""
        inquiry = self._open.get(inquiry_id)
        if inquiry is not None:
            inquiry.answers[name] = answer
            if inquiry.expected <= inquiry.answers.keys():
                inquiry.complete.set()

    async def wait(self, inquiry_id: str, timeout_s: float) -> dict[str, Any]:
        """Answers by node name; after `timeout_s` those that came."""
        inquiry = self._open[inquiry_id]
        try:
            await asyncio.wait_for(inquiry.complete.wait(), timeout_s)
        except asyncio.TimeoutError:
            pass
        finally:
            del self._open[inquiry_id]
        return inquiry.answers
