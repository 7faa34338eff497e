"""`PendingReplies`: what nodes reply to the questions of this coordinator, as it comes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


def never(_: Any) -> bool:
    """Says of every reply that the others have to be heard too."""
    return False


@dataclass
class _Question:
    expected: set[str]
    decides: Callable[[Any], bool]
    answers: dict[str, Any] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)


class PendingReplies:
    """Collects the replies to questions that were sent to several nodes.

    `open` gives an id to send along, `answered` takes what a node replies, `wait` returns the
    replies once all are here, or one that decides.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Question] = {}

    def open(self, names: Iterable[str], decides: Callable[[Any], bool] = never) -> str:
        """Returns the id of a new question to the nodes of these names. `decides` says of a reply
        whether it is enough alone. `wait` must be called for it, or it is never forgotten."""
        question_id = uuid.uuid4().hex
        question = self._open[question_id] = _Question(set(names), decides)
        if not question.expected:
            question.complete.set()
        return question_id

    def answered(self, question_id: str, name: str, answer: Any) -> None:
        """Takes the reply of one node; drops one that comes too late or to an unknown question."""
        question = self._open.get(question_id)
        if question is not None:
            question.answers[name] = answer
            if question.decides(answer) or question.expected <= question.answers.keys():
                question.complete.set()

    async def wait(self, question_id: str, timeout_s: float) -> dict[str, Any]:
        """Returns the replies by node name as soon as all are here or one decides, or after
        `timeout_s` those that came. Ends the question."""
        question = self._open[question_id]
        try:
            await asyncio.wait_for(question.complete.wait(), timeout_s)
        except asyncio.TimeoutError:
            pass
        finally:
            del self._open[question_id]
        return question.answers
