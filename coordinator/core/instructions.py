"""What the coordinator's core tells its shell to do. Pure values."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.answers.answer import Answer
from protocol.messages import Message


@dataclass(frozen=True)
class Send:
    """Asks to queue a message for the process at this address."""

    address: str
    message: Message


@dataclass(frozen=True)
class Forget:
    """Asks to drop what is queued for this address: its reader is gone."""

    address: str


@dataclass(frozen=True)
class AnswerStarted:
    """Says that a request was accepted, and which answer its client has to wait for."""

    answer: Answer


@dataclass(frozen=True)
class AnswerChanged:
    """Says that an answer has more tokens than before, and is not done."""

    answer: Answer


@dataclass(frozen=True)
class AnswerEnded:
    """Says that an answer is done. Every answer that was started ends exactly once."""

    answer: Answer


Instruction = Send | Forget | AnswerStarted | AnswerChanged | AnswerEnded
