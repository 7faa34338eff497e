"""What the coordinator's core tells its shell to do. Pure values.

There is one of them for every token that is streamed, so they are structs, which are made in a
quarter of the time that a frozen dataclass takes.
"""

from __future__ import annotations

import msgspec

from coordinator.answers.answer import Answer
from protocol.messages import Message


class Send(msgspec.Struct, frozen=True):
    """Queue a message for the process at this address."""

    address: str
    message: Message


class Forget(msgspec.Struct, frozen=True):
    """Drop what is queued for this address: nobody will read it who should."""

    address: str


class AnswerStarted(msgspec.Struct, frozen=True):
    """A request was accepted; this is the answer to wait for."""

    answer: Answer


class AnswerChanged(msgspec.Struct, frozen=True):
    """The answer has more tokens than before, and is not done."""

    answer: Answer


class AnswerEnded(msgspec.Struct, frozen=True):
    """The answer is done. Every answer that was started ends exactly once."""

    answer: Answer


Instruction = Send | Forget | AnswerStarted | AnswerChanged | AnswerEnded
