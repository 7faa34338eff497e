"""`FairShares`: whose turn it is among the tenants that share the cluster. Pure.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): each
tenant has a counter of the work that it was served, in tokens, and of those who wait, the one with
the least goes next. The length of an answer is guessed when its request goes, and what was guessed
wrong is settled at its end, as in the paper's variant with predictions.

A tenant that comes is put level with the counter of whoever went last (the start tags of
start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996), so work that nobody else had to wait
for costs nothing. One that was served more keeps its debt, also while nothing of it waits. One that
has asked for less than its share keeps a little of what it left to others, its credit: requests of
a modest tenant come in bursts, too, and a burst goes before the backlog of a greedy one (as in
borrowed virtual time: Duda and Cheriton, SOSP 1999). Nobody saves up more than that.

If turns are kept, no tenant is served more than another one, while that one waits, by more than two
of the largest requests and the credit. Beside this comes what turns cannot decide: a request for
which there is room goes, although another tenant's larger one is next and has none, and a wrong
guess of a length counts only when the answer has ended.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

MAX_IDLE_TENANTS = 1024
"""So many tenants without a request are remembered, the last ones that had one."""
MEMORY_S = 60.0
"""A tenant, with its debt or credit, is forgotten when it had no request for so long."""
Item = TypeVar("Item")


@dataclass(eq=False)
class _Tenant:
    counter: int = 0
    """Tokens of work that it was served, from where it began."""
    waiting: dict[int, int] = field(default_factory=dict)
    """Tokens of work that wait, by priority."""
    num_waiting: int = 0
    num_unsettled: int = 0
    """Requests that were served and have not ended."""

    @property
    def is_idle(self) -> bool:
        return not self.num_waiting and not self.num_unsettled


class FairShares:
    """Counts the work of tenants. Each request is one `joined`, then either one `left`, or one
    `served` and one `settled`."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._level = 0
        """The counter, before it went, of the request that went last; it never falls."""
        self._idle: dict[str, float] = {}
        """Since when tenants have no request, the longest first."""
        self.num_waiting_tenants = 0
        self.credit_tokens = 0
        """The most work that a tenant may be ahead of others when it begins to wait."""

    def __len__(self) -> int:
        """Returns how many tenants are known."""
        return len(self._tenants)

    def num_unfinished(self, name: str) -> int:
        """Returns how many requests of a tenant wait or were served and have not ended."""
        tenant = self._tenants.get(name)
        return 0 if tenant is None else tenant.num_waiting + tenant.num_unsettled

    def joined(self, name: str, priority: int, num_tokens: int) -> None:
        """Notes that a request of so much work begins to wait."""
        tenant = self._tenants.setdefault(name, _Tenant(self._level))
        self._idle.pop(name, None)
        if not tenant.num_waiting:
            self.num_waiting_tenants += 1
            tenant.counter = max(tenant.counter, self._level - self.credit_tokens)
        tenant.num_waiting += 1
        tenant.waiting[priority] = tenant.waiting.get(priority, 0) + num_tokens

    def left(self, name: str, priority: int, num_tokens: int, now: float) -> None:
        """Notes that a request waits no more, and is not served."""
        self._take_out(self._tenants[name], priority, num_tokens)
        self._forget_idle(name, now)

    def served(self, name: str, priority: int, num_tokens: int) -> None:
        """Notes that it is the turn of a request that waited."""
        tenant = self._tenants[name]
        self._take_out(tenant, priority, num_tokens)
        tenant.num_unsettled += 1
        self._level = max(self._level, tenant.counter)
        tenant.counter += num_tokens

    def settled(self, name: str, difference: int, now: float) -> None:
        """Notes that a request which was served has ended, and took `difference` more tokens of
        work than was thought."""
        tenant = self._tenants[name]
        tenant.num_unsettled -= 1
        tenant.counter += difference
        self._forget_idle(name, now)

    def in_turn(
        self,
        queues: Mapping[str, Iterable[Item]],
        num_tokens: Callable[[Item], int],
        limit: int,
    ) -> list[Item]:
        """Returns the first `limit` requests in the order in which they should be served. `queues`
        has those of each tenant, in order, and `num_tokens` tells the work of one."""
        waiting = [
            (self._tenants[name].counter, number, iter(queue))
            for number, (name, queue) in enumerate(queues.items())
        ]
        heapq.heapify(waiting)
        chosen: list[Item] = []
        while waiting and len(chosen) < limit:
            counter, number, queue = waiting[0]
            item = next(queue, None)
            if item is None:
                heapq.heappop(waiting)
                continue
            chosen.append(item)
            heapq.heapreplace(waiting, (counter + num_tokens(item), number, queue))
        return chosen

    def work_before(self, name: str, priority: int) -> int:
        """Returns the tokens of work that would be served before a request that a tenant sends now:
        its own that waits and is not of a lower priority, and of every other tenant what is served
        until their counters are level."""
        tenant = self._tenants.get(name)
        own, counter = 0, self._level
        if tenant is not None:
            own = sum(tokens for of, tokens in tenant.waiting.items() if of >= priority)
            counter = tenant.counter
            if not tenant.num_waiting:
                counter = max(counter, self._level - self.credit_tokens)
        turn = counter + own
        return own + sum(
            min(sum(other.waiting.values()), max(0, turn - other.counter))
            for other_name, other in self._tenants.items()
            if other.num_waiting and other_name != name
        )

    def _take_out(self, tenant: _Tenant, priority: int, num_tokens: int) -> None:
        tenant.num_waiting -= 1
        self.num_waiting_tenants -= not tenant.num_waiting
        tenant.waiting[priority] -= num_tokens
        if not tenant.waiting[priority]:
            del tenant.waiting[priority]  # clients choose priorities, and there are many

    def _forget_idle(self, name: str, now: float) -> None:
        """Notes if a tenant has no requests, and forgets those that had none for too long, or are
        too many."""
        if self._tenants[name].is_idle:
            self._idle[name] = now
        while self._idle:
            other, since = next(iter(self._idle.items()))
            if now - since <= MEMORY_S and len(self._idle) <= MAX_IDLE_TENANTS:
                break
            del self._idle[other], self._tenants[other]
