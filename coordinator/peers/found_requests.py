"""`FoundRequests`: what all coordinators know of the requests that were asked for. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

from protocol.timelines.request_reports import RequestReport


@dataclass(frozen=True)
class FoundRequests:
    """The reports of the coordinators that have answered, unfinished requests first."""

    reports: list[RequestReport]
    unanswered: Collection[str]
    """The addresses of the coordinators that did not answer in time."""

    @staticmethod
    def join(
        found: Sequence[list[RequestReport]], limit: int, unanswered: Collection[str]
    ) -> FoundRequests:
        """Returns the reports of several coordinators in one order, at most `limit` of them."""
        everything = sorted(chain(*found), key=lambda r: (r.state == "ended", r.arrived_s_ago))
        return FoundRequests(everything[:limit], unanswered)

    def closest_to(self, name: str) -> RequestReport | None:
        """Returns the request that has exactly this name if there is one, and else the newest that
        was named after it; None if none was found."""
        exact = (r for r in self.reports if name in (r.rid, r.request_id))
        return next(exact, self.reports[0] if self.reports else None)
