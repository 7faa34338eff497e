"""The pages that a node sends to those it computes prompts for, held until the last send has ended.
Pure.

    begin ──► under way ──► every `PagesSent` is here: forgotten; pages that were left are released
                  │ leave: the job needs its pages no longer, its sends still do
                  └ cancel: nobody wants the rest, nor hears of a failure

As long as sends of an attempt are under way it is known here (`in`), and must not begin anew: their
ends could not be told from those of its second life.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.cache.prefix_cache import HeldPages, PrefixCache
from node.core.instructions import CancelSends, Instruction
from protocol.ids import Attempt


@dataclass(eq=False)
class _SendsOfAttempt:
    reply_address: str
    """Who is told of a failure; "" if nobody wants to know any more."""
    num_under_way: int = 0
    held: HeldPages | None = None
    """The pages that are released when the last send has ended; None while the job goes on."""


class PagesBeingSent:
    """Counts the sends of each attempt, and releases its pages after the last one."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._sends: dict[Attempt, _SendsOfAttempt] = {}

    def __contains__(self, attempt: Attempt) -> bool:
        return attempt in self._sends

    def begin(self, attempt: Attempt, reply_address: str) -> None:
        """Counts one more send that is under way."""
        self._sends.setdefault(attempt, _SendsOfAttempt(reply_address)).num_under_way += 1

    def leave(self, attempt: Attempt, held: HeldPages) -> None:
        """Takes the pages of a job that is over, and releases them when its sends have ended."""
        sends = self._sends.get(attempt)
        if sends is None:
            self._cache.release(held)
        else:
            sends.held = held

    def ended(self, attempt: Attempt) -> str:
        """Notes that one send has ended. Returns who is to be told if it failed; "" for nobody."""
        sends = self._sends[attempt]
        sends.num_under_way -= 1
        if sends.num_under_way == 0:
            del self._sends[attempt]
            if sends.held is not None:
                self._cache.release(sends.held)
        return sends.reply_address

    def cancel(self, attempt: Attempt) -> list[Instruction]:
        """Drops what was not yet sent of this attempt, and of older ones of its request."""
        instructions: list[Instruction] = []
        for transfer, sends in self._sends.items():
            if transfer.superseded_by(attempt) and sends.reply_address:
                sends.reply_address = ""
                instructions.append(CancelSends(transfer))
        return instructions
