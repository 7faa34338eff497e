"""`TurnWatch`: checks in which order one coordinator lets its requests begin, and how late.

Virtual token counters keep the counters of two tenants that wait within the largest request of each
other, so that over any time the work served to them differs by twice that at most (Sheng et al.,
"Fairness in Serving Large Language Models", OSDI 2024). What may come on top here:

* A tenant has a credit, so much may its counter be behind when it begins to wait.
* Another tenant may need so little that it goes while nobody else can. Who comes then is level with
  that one, and those who waited catch up first: with no more than what began beside them.

All this is about requests of which each could begin in the place of any other, so only those of a
rush are compared, which are alike; and a request counts when it has ended, as its length was only
guessed before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.sim.checks import Wrong

LATE_S = 0.3
"""How much later than its deadline a request may be given up, or begin: the core looks at them now
and then, and its shell in turn."""


@dataclass(eq=False)
class Waiting:
    """A request that has not begun."""

    tenant: str
    is_of_rush: bool
    """It is one of many that are alike."""
    longest_wait_s: float
    asked_at: float
    pauses: int
    """How many pauses the coordinator had seen when it came."""
    begun_before: dict[str, int] = field(default_factory=dict)
    """The work of each tenant that had begun when it came."""
    arrears: dict[str, int] = field(default_factory=dict)
    """How far the tenants that waited were behind when it came, at most."""
    done: dict[str, int] = field(default_factory=dict)
    """The work of other tenants' requests that have begun since it came, and ended."""


@dataclass(frozen=True)
class Begun:
    """A request of a rush that was given to a node, for the first time."""

    tenant: str
    num_tokens: int
    """Its work if its answer is as long as it may be."""
    at: float


class TurnWatch:
    """Knows what waits at a coordinator and what has begun, as a client could see it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: dict[str, Waiting] = {}
        self._under_way: dict[str, Begun] = {}
        self._begun: dict[str, int] = {}
        """The work of each tenant that has begun."""
        self._credits: dict[str, int] = {}
        """The largest credit with which each tenant may have begun to wait."""

    def came(self, request_id: str, waiting: Waiting, credit_tokens: int) -> None:
        """Notes a request that was let in, when a tenant's credit was this large."""
        if all(other.tenant != waiting.tenant for other in self._waiting.values()):
            self._may_have_credit(waiting.tenant, credit_tokens)
        waiting.begun_before = dict(self._begun)
        waiting.arrears = self._arrears()
        self._waiting[request_id] = waiting

    def ended(
        self, request_id: str, is_whole: bool, now: float, awake_since: float, pauses: int
    ) -> None:
        """Notes the end of a request, which may have begun or not; `is_whole`: with an answer that
        is as long as it may be. Raises Wrong if it has waited for too long, or if its tenant was
        served far more than one that waits."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None:
            self._require_in_time(request_id, waiting, now, awake_since, pauses)
        begun = self._under_way.pop(request_id, None)
        if begun is not None and is_whole:
            self._require_turns(begun, pauses)

    def began(
        self,
        request_id: str,
        num_tokens: int,
        credit_tokens: int,
        now: float,
        awake_since: float,
        pauses: int,
    ) -> None:
        """Notes that a request was given to a node. Raises Wrong if it has waited for too long."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is None:  # it had begun before, and costs its tenant only what is left
            begun = self._under_way.pop(request_id, None)
            if begun is not None:
                self._may_have_credit(begun.tenant, credit_tokens)
            return
        self._require_in_time(request_id, waiting, now, awake_since, pauses)
        tenant = waiting.tenant
        self._begun[tenant] = self._begun.get(tenant, 0) + num_tokens
        if waiting.is_of_rush:
            self._under_way[request_id] = Begun(tenant, num_tokens, now)

    def _may_have_credit(self, tenant: str, credit_tokens: int) -> None:
        self._credits[tenant] = max(self._credits.get(tenant, 0), credit_tokens)

    def _arrears(self) -> dict[str, int]:
        """Returns for each tenant that waits what began of others since its oldest request came."""
        oldest = {waiting.tenant: waiting for waiting in reversed(self._waiting.values())}
        return {
            tenant: sum(self._since(other, waiting) for other in self._begun if other != tenant)
            for tenant, waiting in oldest.items()
        }

    def _since(self, tenant: str, waiting: Waiting) -> int:
        return self._begun.get(tenant, 0) - waiting.begun_before.get(tenant, 0)

    def _require_turns(self, begun: Begun, pauses: int) -> None:
        tenant = begun.tenant
        for other in self._waiting.values():
            if other.tenant == tenant or not other.is_of_rush or other.pauses != pauses:
                continue
            if begun.at <= other.asked_at:
                continue
            other.done[tenant] = other.done.get(tenant, 0) + begun.num_tokens
            more = other.done[tenant] - self._since(other.tenant, other)
            ahead = self._credits[tenant] + other.arrears.get(tenant, 0)
            if more > ahead + 2 * begun.num_tokens:
                raise Wrong(
                    f"{self._name} served {tenant!r} {more} tokens more than {other.tenant!r}, "
                    "which waited"
                )

    def _require_in_time(
        self, request_id: str, waiting: Waiting, now: float, awake_since: float, pauses: int
    ) -> None:
        if waiting.pauses != pauses or awake_since > waiting.asked_at:
            return  # it was held, or the coordinator slept
        late_s = now - waiting.asked_at - waiting.longest_wait_s
        if late_s > LATE_S:
            raise Wrong(f"{request_id} waited {late_s:.2f} s longer than its deadline")
