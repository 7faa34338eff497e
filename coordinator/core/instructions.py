"""What the coordinator's core tells its shell to do. Pure values.

There is one of them for every token that is streamed, so they are structs, which are made in a
quarter of the time that a frozen dataclass takes.
"""

from __future__ import annotations

import msgspec

from coordinator.answers.answer import Answer
from protocol.messages import Message


class Send(msgspec.Struct, frozen=True):
    """Asks to queue a message for the process at this address."""

    address: str
    message: Message


class Forget(msgspec.Struct, frozen=True):
    """Asks to drop what is queued for this address: its reader is gone."""

    address: str


class AnswerStarted(msgspec.Struct, frozen=True):
    """Says that a request was accepted, and which answer its client has to wait for."""

    answer: Answer


class AnswerChanged(msgspec.Struct, frozen=True):
    """Says that an answer has more tokens than before, and is not done."""

    answer: Answer


class AnswerEnded(msgspec.Struct, frozen=True):
    """Says that an answer is done. Every answer that was started ends exactly once."""

    answer: Answer


class TellCoordinators(msgspec.Struct, frozen=True):
    """Asks to queue a message for every other coordinator."""

    message: Message


Instruction = Send | Forget | TellCoordinators | AnswerStarted | AnswerChanged | AnswerEnded
