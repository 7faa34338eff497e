"""`Turns`: the work of those who wait for the cluster, and how soon it will be their turn. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.admission.answer_lengths import AnswerLengths
from coordinator.admission.fair_shares import FairShares
from coordinator.admission.queue_speed import QueueSpeed

ANSWER_WEIGHT = 2
"""A token of an answer counts as so many of a prompt, as in the paper of `FairShares`."""


CREDIT_S = 1.0
"""A tenant that has asked for less than its share may be ahead of others by what the whole cluster
begins in this time."""


@dataclass(eq=False)
class Work:
    """What one request takes of the cluster, in tokens of prompts."""

    tenant: str
    priority: int
    num_prompt_tokens: int
    """Tokens of the prompt that no node has."""
    num_answer_tokens: int
    """The length that its answer is thought to have."""
    is_served: bool = False
    """True from its turn on, until it is settled."""

    @property
    def num_tokens(self) -> int:
        """The work of the whole request."""
        return self.num_prompt_tokens + ANSWER_WEIGHT * self.num_answer_tokens


class Turns:
    """Keeps account of the work that waits and was served, of all tenants."""

    def __init__(self) -> None:
        self.shares = FairShares()
        self.lengths = AnswerLengths()
        self._speed = QueueSpeed()
        self._num_waiting = 0

    def joined(
        self,
        tenant: str,
        priority: int,
        num_prompt_tokens: int,
        most_answer_tokens: int,
        now: float,
    ) -> Work:
        """Notes that a request begins to wait, and returns its work. Its answer may have
        `most_answer_tokens`."""
        num_answer_tokens = self.lengths.expected(most_answer_tokens)
        work = Work(tenant, priority, num_prompt_tokens, num_answer_tokens)
        self.shares.credit_tokens = int(CREDIT_S * self._speed.tokens_per_s(0.0, now))
        self.shares.joined(tenant, priority, work.num_tokens)
        self._num_waiting += 1
        return work

    def left(self, work: Work, now: float) -> None:
        """Notes that a request waits no more, and is not served."""
        self.shares.left(work.tenant, work.priority, work.num_tokens, now)
        self._num_waiting -= 1
        if not self._num_waiting:
            self._speed.interrupted()

    def served(self, several: Sequence[Work], now: float) -> None:
        """Notes that it is the turn of these requests, all at the same time."""
        if not several:
            return
        for work in several:
            work.is_served = True
            self.shares.served(work.tenant, work.priority, work.num_tokens)
        self._num_waiting -= len(several)
        num_tokens = sum(work.num_tokens for work in several)
        self._speed.departed(num_tokens, self._num_waiting > 0, now)

    def settled(self, work: Work, num_answer_tokens: int | None, now: float) -> None:
        """Notes that a request which was served has ended with so long an answer; None: nothing
        was done for it, through no fault of its tenant. Does nothing the second time."""
        if not work.is_served:
            return
        work.is_served = False
        if num_answer_tokens is None:
            difference = -work.num_tokens
        else:
            self.lengths.observe(num_answer_tokens)
            difference = ANSWER_WEIGHT * (num_answer_tokens - work.num_answer_tokens)
        self.shares.settled(work.tenant, difference, now)

    def interrupted(self) -> None:
        """Notes that those who wait are held back on purpose for a while."""
        self._speed.interrupted()

    def wait_s(self, tenant: str, priority: int, presumed: float, now: float) -> float:
        """Returns how long a request that comes now would wait for those who go before it.

        `presumed` is the cluster's speed, in tokens per second, until it was measured.
        """
        if not self._num_waiting:
            return 0.0
        before = self.shares.work_before(tenant, priority)
        speed = self._speed.tokens_per_s(presumed, now)
        return before / speed if speed else float("inf")
