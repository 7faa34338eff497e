"""Which transfers a node expects, so that late news of aborted ones is dropped. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from node.core.instructions import (
    AbortTransfer,
    Event,
    ExpectPages,
    Instruction,
    PagesArrived,
    TransferNews,
)
from protocol.ids import Attempt


class ExpectedTransfers:
    """Gives every transfer that is expected a serial number, since its name may come again."""

    def __init__(self) -> None:
        self._serials: dict[Attempt, int] = {}
        self._num_expected = 0

    def noted(self, instructions: Iterable[Instruction]) -> list[Instruction]:
        """Returns the same instructions, but with a serial number in each `ExpectPages`, and
        remembers which transfers they begin and end to expect."""
        noted: list[Instruction] = []
        for instruction in instructions:
            if isinstance(instruction, ExpectPages):
                self._num_expected += 1
                self._serials[instruction.transfer] = self._num_expected
                instruction = replace(instruction, serial=self._num_expected)
            elif isinstance(instruction, AbortTransfer):
                self._serials.pop(instruction.transfer, None)
            noted.append(instruction)
        return noted

    def is_current(self, news: TransferNews) -> bool:
        """Returns whether the news is of a transfer that is expected now. Forgets the transfer if
        it ends by this news."""
        if self._serials.get(news.transfer) != news.serial:
            return False
        if not isinstance(news, PagesArrived):
            del self._serials[news.transfer]
        return True


def without_outdated(events: Iterable[Event]) -> list[Event]:
    """Returns the events without progress that is followed by more progress of the same transfer:
    each costs the core some work, and the last one says it all."""
    events = list(events)
    newest = {(e.transfer, e.serial): e for e in events if isinstance(e, PagesArrived)}
    return [
        event
        for event in events
        if not isinstance(event, PagesArrived) or newest[event.transfer, event.serial] is event
    ]
