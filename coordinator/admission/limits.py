"""`Limits`: which requests may wait, and for how long. Pure.

A request whose turn is predicted to come too late is refused at once: its client can go elsewhere,
or come back when its place is free, while those that wait are answered in time. A prediction may be
wrong, so who has waited too long after all is given up before any work is done for it.

    arrival ├──────────── wait ───────────┤── prompt computed ──┤ first token
            │◄────────────────── max_ttft_s ───────────────────►│
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ADMITTED_SHARE = 0.7
"""Admission fills the time that a request may wait to this share, since predictions are off."""
RESERVED_S = 0.1
"""What a first token takes beside waiting and computing: a node's step, pages and messages."""
TENANT_SHARE = 8
"""A tenant may have so many times as many unfinished requests as there are places left. One alone
gets eight ninths of all places, and those who come later find some (the dynamic thresholds of
Choudhury and Hahne, IEEE/ACM Transactions on Networking, 1998)."""
MAX_RETRY_AFTER_S = 3_600


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused, for its client to read, and when it may come back."""

    reason: str
    retry_after_s: int


@dataclass(frozen=True)
class Limits:
    """How late first tokens may come, and how many requests are kept."""

    max_ttft_s: float
    """Time to the first token that a request may take in all; 0: as long as it takes."""
    max_wait_s: float
    """Time that a request may wait for its turn."""

    def longest_wait_s(self, work_s: float) -> float:
        """Returns how long a request may wait whose prompt takes `work_s` to compute.

        Who could not be in time at an idle cluster either may still go if nobody has to be waited
        for: coming back later would not help.
        """
        if not self.max_ttft_s:
            return self.max_wait_s
        in_time_s = self.max_ttft_s - work_s - min(RESERVED_S, 0.1 * self.max_ttft_s)
        return min(self.max_wait_s, max(0.0, in_time_s))

    def too_late(self, wait_s: float, work_s: float) -> Refusal | None:
        """Returns why a request is refused that would wait for `wait_s`; None if it may come."""
        admitted_s = ADMITTED_SHARE * self.longest_wait_s(work_s)
        if wait_s <= admitted_s:
            return None
        return Refusal(
            f"the request would wait {wait_s:.1f} s for its turn; to be answered in time it may "
            f"wait {admitted_s:.1f} s",
            whole_seconds(wait_s - admitted_s),
        )


def too_many(num_unfinished: int, of_tenant: int, most: int) -> str:
    """Returns why there is no place for one more request when `num_unfinished` of at most `most`
    are unfinished, `of_tenant` of these its tenant's; "" if there is one."""
    num_free = most - num_unfinished
    if num_free <= 0:
        return f"{num_unfinished} requests are unfinished, and no more are kept"
    if of_tenant >= TENANT_SHARE * num_free:
        return f"{of_tenant} requests of this tenant are unfinished; other places are for others"
    return ""


def whole_seconds(seconds: float) -> int:
    """Returns what a `Retry-After` header says for so many seconds: at least one."""
    return max(1, math.ceil(min(MAX_RETRY_AFTER_S, seconds)))
