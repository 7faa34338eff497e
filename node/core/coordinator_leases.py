"""Which coordinators are alive, as a node knows. Pure."""

from __future__ import annotations


class CoordinatorLeases:
    """A coordinator is alive for a time after it was heard; its requests live no longer."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}

    def heard(self, address: str, lease_s: float, now: float) -> None:
        """The coordinator is alive for at least `lease_s` from now."""
        self._ends[address] = max(self._ends.get(address, now), now + lease_s)

    def take_silent(self, now: float) -> list[str]:
        """Returns the addresses of those whose lease has ended, each once."""
        silent = [address for address, end in self._ends.items() if now >= end]
        for address in silent:
            del self._ends[address]
        return silent
