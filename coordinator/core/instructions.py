"""What the coordinator's core tells its shell to do. Pure values."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.answers.answer import Answer
from protocol.messages import Message


@dataclass(frozen=True)
class Send:
    """Queue a message for the process at this address."""

    address: str
    message: Message


@dataclass(frozen=True)
class Forget:
    """Drop what is queued for this address: nobody will read it who should."""

    address: str


@dataclass(frozen=True)
class AnswerStarted:
    """A request was accepted; this is the answer to wait for."""

    answer: Answer


@dataclass(frozen=True)
class AnswerChanged:
    """The answer has more tokens than before, and is not done."""

    answer: Answer


@dataclass(frozen=True)
class AnswerEnded:
    """The answer is done. Every answer that was started ends exactly once."""

    answer: Answer


Instruction = Send | Forget | AnswerStarted | AnswerChanged | AnswerEnded
