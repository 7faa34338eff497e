"""`DispatchQueue`: requests wait here, and are bound to a node when one is nearly free. Pure.

A decision is best when it is made late: queues and caches are known then. So nodes are given only
a little work ahead, just enough never to idle, and the rest waits here. Tenants have their turns as
`FairShares` says. Of one tenant, a higher priority goes first, and who has waited for
PRIORITY_PATIENCE_S counts as of the highest, so that no priority starves another. Among equals the
order is this:

  * While the backlog is short, the largest (waited + half of the goal) / work goes first: at the
    beginning these are the shortest requests, which makes the mean least, and whoever waits gains
    on those who come later (Brinch Hansen's highest response ratio next, 1971, has `work` where
    half of the goal is). Requests that are about to miss the goal go before all others.
  * With a long backlog the tail comes first: the order is that of arrival, but for a head start
    that the short ones have (Yu and Scully's Boost, 2024, whose tail is shorter than that of the
    order of arrival). The scale of the head starts grows with the backlog.
  * Requests whose work alone is longer than the goal go after all others, until they have waited
    for ten goals; then they, as anybody who has, go before all others, so nobody starves.

The goal is the 99th percentile of the time that recent prompts take alone. No order can have a
lower 99th percentile, and the hundredth of the requests that take longer is the one which that
percentile does not count.

`work` is the time to compute what no node has of the prompt.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable

from coordinator.admission.turns import Turns
from coordinator.routing.placement import Placement
from coordinator.routing.prices.planned import PlannedWork
from coordinator.routing.route import Route
from coordinator.routing.routed_request import RoutedRequest

DISPATCH_AHEAD_S = 0.05
"""A node with less than this to compute gets its next prompt."""
MIN_WAIT_S, MAX_WAIT_S = 0.0001, 0.05
"""Time between two looks at the queue, if nothing happens."""
VAIN_PAUSE_S = 0.02
"""Time until the next full look after one that found nothing to send; see `_pause_s`."""
LOOK_AHEAD = 32
"""How many are considered when a node becomes free: the first in order may go elsewhere."""
GOAL_QUANTILE = 0.99
GOAL_WINDOW = 1_000
"""The goal is taken from so many recent requests."""
PATIENCE_GOALS = 10
"""Who has waited so long goes first, and may wait at a decode node for its pages."""
LETS_PASS_S = 3.0
"""Who has waited so long lets no shorter prompt pass that came later."""
PRIORITY_PATIENCE_S = 30.0
"""Who has waited so long goes with those of the highest priority."""
RESPONSE_SHARE = 0.5
"""Waiting for less than this share of the goal changes little about who goes first."""
DANGER_SHARE = 0.3
"""In the last 30 % of the goal a request is about to miss it."""
CALM_SHARE = 0.5
"""Nobody is about to miss the goal while the nodes need more than this share of it for the
backlog: most would miss it whatever is done, and trying would cost everybody else."""
LONG_SHARE = 0.55
"""The backlog is long when the nodes need more than this share of the goal for it."""
HEAD_START_SHARE = 0.3
"""The scale of the head starts, as a share of the time that the nodes need for the backlog."""


class DispatchQueue:
    """Holds the requests that are not bound to a node yet. Without `binds_late` every request is
    sent at once, in the order in which they came."""

    def __init__(self, placement: Placement, binds_late: bool) -> None:
        self._placement = placement
        self._binds_late = binds_late
        self._waiting: dict[RoutedRequest, None] = {}
        self.turns = Turns()
        """The work of those who wait or were sent and have not ended."""
        self._goal = _Goal()
        self._looked_in_vain = (0.0, -1)
        self._planned = PlannedWork()
        """What those who wait will need, as the last look in vain has found."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, routed: RoutedRequest) -> bool:
        return routed in self._waiting

    def add(self, routed: RoutedRequest, now: float) -> None:
        """Lets a request wait for its turn, after it has estimated its work, on which the order
        depends."""
        routed.work_s, routed.skips_prefill = self._placement.assess(routed.demand, now)
        routed.was_looked_at = False
        num_tokens = self._placement.tokens_to_compute(routed.demand, now)
        routed.work = self.turns.joined(
            routed.tenant, routed.priority, num_tokens, routed.most_answer_tokens, now
        )
        self._goal.observe(routed.work_s)
        self._waiting[routed] = None

    def remove(self, routed: RoutedRequest, now: float) -> None:
        """Removes a request that is not wanted any more. Does nothing if it does not wait."""
        if routed not in self._waiting:
            return
        del self._waiting[routed]
        if routed.work is not None:
            self.turns.left(routed.work, now)

    def settle(self, routed: RoutedRequest, num_answer_tokens: int | None, now: float) -> None:
        """Notes what became of a request that was sent, as `Turns.settled` does."""
        if routed.work is not None:
            self.turns.settled(routed.work, num_answer_tokens, now)

    def wait_s(self, tenant: str, priority: int, now: float) -> float:
        """Returns how long a request that comes now would wait until its prompt is begun."""
        presumed = self._placement.prompt_tokens_per_s
        return self._placement.free_in_s(now) + self.turns.wait_s(tenant, priority, presumed, now)

    def dispatch(self, now: float) -> list[tuple[RoutedRequest, Route]]:
        """Routes and books the requests that are to be sent now, and returns them."""
        sent: list[tuple[RoutedRequest, Route]] = []
        ahead_s = DISPATCH_AHEAD_S if self._binds_late else float("inf")
        if not self._waiting:
            return sent
        below_s = self._placement.begins_within(ahead_s, now)
        eligible = self._eligible(self._waiting, below_s)
        is_pause = self._pause_s(now) > 0
        if is_pause:
            looked_at, planned = [o for o in eligible if not o.was_looked_at], self._planned
        else:
            looked_at = self._first(eligible, now)
            planned = self._overdue(below_s, now) if eligible else PlannedWork()
        is_news = False
        for waiting in looked_at:
            if is_news:
                below_s = self._placement.begins_within(ahead_s, now)
                is_news = False
            if waiting.work_s >= below_s and not waiting.skips_prefill:
                continue
            waiting.was_looked_at = True
            route = self._placement.route(waiting.demand, now, planned)
            admission_pages = waiting.demand.admission_pages
            # A fetch that takes as long as the queue had better begin.
            is_turn = route.queue_s <= max(ahead_s, route.cost.fetch_s)
            if is_turn and self._may_start(waiting, route, planned, now):
                del self._waiting[waiting]
                self._placement.book(waiting, route, now)
                sent.append((waiting, route))
                is_news = True
            elif is_turn:  # those looked at stand for all that wait
                planned.wait(route, admission_pages, max(1.0, len(eligible) / LOOK_AHEAD))
            else:  # its turn is not yet; who comes after it must not count on its nodes
                lets_pass = now - waiting.arrived < LETS_PASS_S
                planned.add(route, admission_pages, lets_pass)
        self.turns.served([one.work for one, _ in sent if one.work is not None], now)
        if looked_at and not sent and not is_pause:
            self._planned = planned
            self._looked_in_vain = (now, self._placement.num_changes)
        return sent

    def _may_start(
        self, waiting: RoutedRequest, route: Route, planned: PlannedWork, now: float
    ) -> bool:
        """Returns True if the node that answers has room, or if the request has waited so long here
        that it may go on waiting at the node."""
        if not self._binds_late:
            return True
        if self._placement.has_room(route, waiting.demand.admission_pages, planned):
            return True
        return self._is_impatient(waiting, now) and self._placement.may_wait(route, planned)

    def _is_impatient(self, waiting: RoutedRequest, now: float) -> bool:
        return now - waiting.arrived > self._patience_s

    @property
    def _patience_s(self) -> float:
        """Returns how long a request waits in order before it goes first."""
        return PATIENCE_GOALS * self._goal.seconds

    def dispatch_in_s(self, now: float) -> float | None:
        """Returns when to call `dispatch` again if nothing happens before; None if nothing
        waits."""
        if not self._waiting:
            return None
        waits = [busy_s - DISPATCH_AHEAD_S for busy_s in self._placement.busy_s(now)]
        soonest = min((wait for wait in waits if 0 < wait < MAX_WAIT_S), default=MAX_WAIT_S)
        return max(MIN_WAIT_S, soonest, self._pause_s(now))

    def _pause_s(self, now: float) -> float:
        """Returns for how long only new requests are looked at.

        After a look that found nothing to send, that is until a node became free or VAIN_PAUSE_S
        have passed: with long queues a look takes milliseconds, and messages come all the time.
        """
        looked_at, num_changes = self._looked_in_vain
        if num_changes != self._placement.num_changes:
            return 0.0
        return max(0.0, looked_at + VAIN_PAUSE_S - now)

    def _eligible(self, waiting: Iterable[RoutedRequest], below_s: float) -> list[RoutedRequest]:
        """Returns the requests that could be sent now.

        Requests that are too large for every node are left out: they wait for a larger node
        as long as the tracker lets them, and must not keep others from being looked at. Those
        are left out too whose prompts are not shorter than `below_s`, as all nodes are busy with
        such prompts, unless no prefill node may take them.
        """
        most_pages = self._placement.most_pages
        return [
            one
            for one in waiting
            if one.demand.num_pages <= most_pages and (one.skips_prefill or one.work_s < below_s)
        ]

    def _overdue(self, below_s: float, now: float) -> PlannedWork:
        """Returns as planned the request that has waited longest for a node to be nearly free, if
        that is so long that no shorter one may pass it any more where it is to go."""
        planned = PlannedWork()
        for one in self._waiting:
            if now - one.arrived < LETS_PASS_S or one.work_s < below_s:
                continue
            if one.demand.num_pages <= self._placement.most_pages and not one.skips_prefill:
                route = self._placement.route(one.demand, now)
                planned.add(route, one.demand.admission_pages)
                break
        return planned

    def _first(self, waiting: list[RoutedRequest], now: float) -> list[RoutedRequest]:
        """Returns the first LOOK_AHEAD requests in the order in which they should go; all of them,
        in the order of arrival, if requests are not bound late."""
        if not self._binds_late or len(waiting) < 2:
            return waiting
        goal_s, patience_s = self._goal.seconds, self._patience_s
        num_nodes = self._placement.num_computing
        backlog_s = sum(one.work_s for one in waiting) / num_nodes
        is_calm = backlog_s < CALM_SHARE * goal_s
        is_long = backlog_s > LONG_SHARE * goal_s
        # Without those who go last anyway: they delay nobody.
        ahead_s = sum(one.work_s for one in waiting if one.work_s <= goal_s) / num_nodes
        scale_s = max(HEAD_START_SHARE * ahead_s, MIN_WAIT_S)

        highest = max(one.priority for one in waiting)

        def order(one: RoutedRequest) -> tuple[int, int, float]:
            waited_s = now - one.arrived
            priority = highest if waited_s > PRIORITY_PATIENCE_S else one.priority
            return -priority, *order_of_equals(one, waited_s)

        def order_of_equals(one: RoutedRequest, waited_s: float) -> tuple[int, float]:
            response_s = waited_s + one.work_s
            if is_calm and (1 - DANGER_SHARE) * goal_s < response_s <= goal_s:
                return 0, goal_s - response_s
            if waited_s > patience_s:
                return -1, one.arrived
            if one.work_s > goal_s:
                return 2, one.arrived
            if is_long:
                return 1, one.arrived - head_start_s(one.work_s, scale_s)
            return 1, -(waited_s + RESPONSE_SHARE * goal_s) / max(one.work_s, 1e-6)

        if self.turns.shares.num_waiting_tenants < 2:
            return heapq.nsmallest(LOOK_AHEAD, waiting, key=order)
        by_tenant: dict[str, list[RoutedRequest]] = {}
        for one in waiting:
            by_tenant.setdefault(one.tenant, []).append(one)
        queues = {
            tenant: heapq.nsmallest(LOOK_AHEAD, of_one, key=order)
            for tenant, of_one in by_tenant.items()
        }
        return self.turns.shares.in_turn(queues, _work_tokens, LOOK_AHEAD)


def _work_tokens(routed: RoutedRequest) -> int:
    assert routed.work is not None  # it waits
    return routed.work.num_tokens


def head_start_s(work_s: float, scale_s: float) -> float:
    """Returns how much earlier than it came a request counts as arrived.

    A request far shorter than `scale_s` gets several of these, one far longer gets nearly nothing.
    Yu and Scully, "Strongly Tail-Optimal Scheduling in the Light-Tailed M/G/1", 2024: with
    `scale_s` the time in which the chance of a longer wait falls to 1/e.
    """
    return -scale_s * math.log(-math.expm1(-max(work_s, 1e-6) / scale_s))


class _Goal:
    """The time within which requests should get their first token: a quantile of the work of the
    last GOAL_WINDOW requests."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def observe(self, seconds: float) -> None:
        insort(self._sorted, seconds)
        self._recent.append(seconds)
        if len(self._recent) > GOAL_WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    @property
    def seconds(self) -> float:
        if not self._sorted:
            return 0.0
        return self._sorted[int(GOAL_QUANTILE * len(self._sorted))]
