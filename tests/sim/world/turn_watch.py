"""`TurnWatch`: checks in which order one coordinator lets its requests begin, and how late."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.sim.checks import Wrong

SHARE_TOKENS = 1_000
"""So much more work, beside the request that begins, one tenant may be served than another that
waits all the time: one may wait for room that another does not need, or have had a credit."""
LATE_S = 0.3
"""How much later than its deadline a request may be given up, or begin: the core looks at them now
and then, and its shell in turn."""


@dataclass(eq=False)
class Waiting:
    """A request that has not begun."""

    tenant: str
    longest_wait_s: float
    asked_at: float
    pauses: int
    """How many pauses the coordinator had seen when it came."""
    ahead: dict[str, int] = field(default_factory=dict)
    """The work that tenants had been served when it came."""


class TurnWatch:
    """Knows what waits at a coordinator and what has begun, as a client could see it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: dict[str, Waiting] = {}
        self._served: dict[str, int] = {}

    def came(self, request_id: str, waiting: Waiting) -> None:
        """Notes a request that was let in."""
        waiting.ahead = dict(self._served)
        self._waiting[request_id] = waiting

    def ended(self, request_id: str, now: float, awake_since: float, pauses: int) -> None:
        """Notes the end of a request, which may have begun or not. Raises Wrong if it has waited
        for too long."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None:
            self._require_in_time(request_id, waiting, now, awake_since, pauses)

    def began(
        self, request_id: str, num_tokens: int, now: float, awake_since: float, pauses: int
    ) -> None:
        """Notes that a request was given to a node. Raises Wrong if it has waited for too long, or
        if its tenant is served far more than one that waits."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is None:
            return  # it had begun before
        self._require_in_time(request_id, waiting, now, awake_since, pauses)
        tenant = waiting.tenant
        self._served[tenant] = self._served.get(tenant, 0) + num_tokens
        for other in self._waiting.values():
            if other.tenant == tenant or other.pauses != pauses:
                continue
            more = self._since(tenant, other) - self._since(other.tenant, other)
            if more > SHARE_TOKENS + num_tokens:
                raise Wrong(
                    f"{self._name} served {tenant!r} {more} tokens more than {other.tenant!r}, "
                    "which waited"
                )

    def _since(self, tenant: str, waiting: Waiting) -> int:
        return self._served.get(tenant, 0) - waiting.ahead.get(tenant, 0)

    def _require_in_time(
        self, request_id: str, waiting: Waiting, now: float, awake_since: float, pauses: int
    ) -> None:
        if waiting.pauses != pauses or awake_since > waiting.asked_at:
            return  # it was held, or the coordinator slept
        late_s = now - waiting.asked_at - waiting.longest_wait_s
        if late_s > LATE_S:
            raise Wrong(f"{request_id} waited {late_s:.2f} s longer than its deadline")
