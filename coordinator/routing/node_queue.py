"""`NodeQueueEstimate`: how long the prompts that a node has will keep it busy. Pure.

Two sources are put together: what this coordinator has sent and knows to be unfinished, and what
the node's heartbeats say beyond that, which other coordinators have sent. Between heartbeats, time
passes for both. Without heartbeats the second part runs out, and what is left is the least-loaded
rule over this coordinator's own requests.
"""

from __future__ import annotations

import msgspec

from coordinator.routing.cost import Number
from protocol.admission import delay_by_oldest_s

SETTLING_S = 0.1
"""A prompt sent so recently may not be counted in a heartbeat yet."""


EQUAL_SHARE = 0.1
"""Prompts whose work differs by less are of one length: it was reckoned with other rates."""


def is_longer(work_s: float, than_s: float) -> bool:
    """Returns True if a prompt with so much work lets a later one with `than_s` pass."""
    return work_s > most_equal_s(than_s)


def most_equal_s(work_s: Number) -> Number:
    """Returns the most work of a prompt that counts as being of one length with one of
    `work_s`."""
    return (1.0 + EQUAL_SHARE) * work_s


class Booking(msgspec.Struct, frozen=True, eq=False):
    """What one attempt takes of the node that computes its prompt and of the node that answers."""

    work_s: float
    """The time for which its prompt keeps the computing node busy."""
    num_pages: int
    """The number of pages that it will take of the decode node."""
    sent_at: float


class NodeQueueEstimate:
    """Estimates the work that lies ahead of one node. Of a node that lets short prompts pass long
    ones, `seconds_before` tells what a prompt of some length will wait for.

    It also counts the requests that this coordinator has at the node, and the pages promised to
    them.
    """

    def __init__(self, total_s: float = 0.0, name: str = "") -> None:
        self.name = name
        """The name of the node."""
        self.num_requests = 0
        """Unfinished requests sent to this node, whatever they wait for."""
        self.num_unheard = 0
        """Requests to be answered that came, less those that went, since the last heartbeat."""
        self.total_s = total_s
        """Work ever sent, from where a node that joins later begins; tells apart nodes that are
        equally free."""
        self.promised_pages = 0
        """Pages that requests were promised which no heartbeat can show as held yet."""
        self._promised: set[Booking] = set()
        self._ours: dict[Booking, None] = {}
        """Prompts that were sent and are not computed yet, in the order they were sent."""
        self._ours_s = 0.0
        self._head_s = 0.0
        """Work of the first of ours, which is computed now; since `_head_began`."""
        self._head_began = 0.0
        self._heard_s = 0.0
        self._others_s = 0.0
        self._surely_others_s = 0.0
        """What would be left of it if the heartbeat had counted all of ours."""
        self._heard_at = 0.0

    @property
    def longest_s(self) -> float:
        """The work of the longest prompt of this coordinator that is not computed; 0 if there is
        none."""
        return max((one.work_s for one in self._ours), default=0.0)

    @property
    def is_empty(self) -> bool:
        """True if the node has no prompt to compute, of this coordinator or of another."""
        return not self._ours and not self._others_s

    def sent(self, booking: Booking) -> None:
        """Adds a prompt to what the node has to compute."""
        if not self._ours:
            self._head_s, self._head_began = booking.work_s, booking.sent_at
        self._ours[booking] = None
        self._ours_s += booking.work_s
        self.total_s += booking.work_s

    def promise(self, booking: Booking) -> None:
        """Promises the pages of a request that was sent to the node."""
        self._promised.add(booking)
        self.promised_pages += booking.num_pages

    def ended(self, booking: Booking) -> None:
        """Takes a promise back: the request has its pages, or needs none. Does nothing the second
        time."""
        if booking in self._promised:
            self._promised.discard(booking)
            self.promised_pages -= booking.num_pages

    def computed(self, booking: Booking, now: float) -> None:
        """Removes a prompt whose first token is here, or which was given up. Does nothing the
        second time."""
        if booking not in self._ours:
            return
        was_head = booking is next(iter(self._ours))
        del self._ours[booking]
        self._ours_s = self._ours_s - booking.work_s if self._ours else 0.0
        if was_head and self._ours:
            self._head_s, self._head_began = next(iter(self._ours)).work_s, now

    def heard(self, queued_s: float, now: float) -> None:
        """Takes from a heartbeat that the node has prompts to compute which will take
        `queued_s`."""
        self.num_unheard = 0
        # The heartbeat shows the pages of all but the newest requests as held or promised.
        for booking in [one for one in self._promised if now - one.sent_at >= SETTLING_S]:
            self.ended(booking)
        # What is queued beyond our own prompts is work that other coordinators have sent.
        known_s = sum(one.work_s for one in self._ours if now - one.sent_at >= SETTLING_S)
        self._heard_s = queued_s
        self._others_s = max(0.0, queued_s - known_s)
        self._surely_others_s = max(0.0, queued_s - self._ours_s)
        self._heard_at = now

    def seconds(self, now: float) -> float:
        """Returns the estimated time until the node would begin with a prompt that is sent now."""
        elapsed_s = now - self._heard_at
        others_s = self._others_s - elapsed_s if self._others_s > elapsed_s else 0.0
        if not self._ours:
            return others_s
        # The first prompt has been computed for a while. No more than its own work counts as done:
        # while it takes longer than was estimated, those behind it have not begun.
        done_s = now - self._head_began
        ours_s = self._ours_s - (done_s if done_s < self._head_s else self._head_s)
        # A head that takes longer than was thought is still there, says the node.
        overdue_s = self._heard_s - elapsed_s
        if overdue_s > ours_s:
            ours_s = overdue_s if overdue_s < self._ours_s else self._ours_s
        return ours_s + others_s if ours_s > 0 else others_s

    def seconds_before(self, work_s: float, now: float) -> float:
        """Returns how much later than alone a prompt would end that takes `work_s` and is sent now,
        if those that take longer let it pass. What other coordinators have sent counts as if it
        were shorter."""
        if not self._ours:
            return self.seconds(now)
        before_s, done_s, num_longer = 0.0, 0.0, 0
        for one in self._ours:
            if is_longer(one.work_s, work_s):
                num_longer += 1
                continue
            if not before_s:  # it is computed since it came, or since the last one was done
                began = max(one.sent_at, self._head_began)
                done_s = min(now - began, one.work_s)
            before_s += one.work_s
        all_s = self.seconds(now)
        if num_longer == 0:
            return all_s
        before_s -= done_s
        before_s += delay_by_oldest_s(before_s + work_s, all_s)
        others_s = max(0.0, self._surely_others_s - (now - self._heard_at))
        return min(before_s + others_s, all_s)

    def num_longer(self, work_s: float) -> int:
        """Returns how many prompts of this coordinator a prompt passes that takes `work_s`."""
        return sum(is_longer(one.work_s, work_s) for one in self._ours)

    def begins_within(self, wait_s: float, now: float) -> float:
        """Returns below which length, in seconds of work, the node would begin with a prompt within
        `wait_s` if it lets short ones pass; infinity if it would with any."""
        if self.seconds(now) <= wait_s:
            return float("inf")
        if self.seconds_before(0.0, now) > wait_s:
            return 0.0
        for work_s in sorted({one.work_s for one in self._ours}):
            if self.seconds_before(work_s, now) > wait_s:
                return work_s
        return float("inf")
