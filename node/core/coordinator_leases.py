"""Which coordinators are alive, as a node knows. Pure."""

from __future__ import annotations


class CoordinatorLeases:
    """Knows for how long each coordinator counts as alive after the last sign of it."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}

    def heard(self, address: str, lease_s: float, now: float) -> None:
        """Takes a sign of life: the coordinator counts as alive for at least `lease_s` from now."""
        self._ends[address] = max(self._ends.get(address, now), now + lease_s)

    def take_silent(self, now: float) -> list[str]:
        """Returns the addresses of coordinators whose lease has ended, and forgets them."""
        silent = [address for address, end in self._ends.items() if now >= end]
        for address in silent:
            del self._ends[address]
        return silent
