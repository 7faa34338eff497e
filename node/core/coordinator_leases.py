"""Which coordinators are alive, as a node knows. Pure."""

from __future__ import annotations

from protocol.ids import coordinator_tag


class CoordinatorLeases:
    """Knows for how long each coordinator counts as alive after the last sign of it."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}

    def heard(self, address: str, lease_s: float, now: float) -> None:
        """Takes a sign of life: the coordinator counts as alive for at least `lease_s` from now."""
        self._ends[address] = max(self._ends.get(address, now), now + lease_s)

    def ended(self, address: str, now: float) -> None:
        """Takes the word of a coordinator that it ends now: its lease is over."""
        if address in self._ends:
            self._ends[address] = now

    def is_alive(self, address: str, now: float) -> bool:
        """Returns True if the coordinator has been heard within its lease."""
        return now < self._ends.get(address, now)

    def has_alive(self, tag: bytes, now: float) -> bool:
        """Returns True if the coordinator with this `coordinator_tag` is alive."""
        return any(
            coordinator_tag(address) == tag and now < end for address, end in self._ends.items()
        )

    def take_silent(self, now: float) -> list[str]:
        """Returns the addresses of coordinators whose lease has ended, and forgets them."""
        silent = [address for address, end in self._ends.items() if now >= end]
        for address in silent:
            del self._ends[address]
        return silent
