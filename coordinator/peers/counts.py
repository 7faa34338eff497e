"""`ClusterCounts`: the sums of what all coordinators have counted. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from protocol.counters import RequestCounters
from protocol.messages import CountsReply


@dataclass(frozen=True)
class ClusterCounts:
    """Sums over the coordinators that have told what they counted."""

    lifetime: RequestCounters
    """Over the requests that have ended since the start of each coordinator."""
    recent: RequestCounters
    """Over those of the last five minutes."""
    num_running: int
    """Requests that were sent to nodes and have not ended."""
    num_waiting: int
    """Requests that are not bound to a node."""
    num_coordinators: int
    unanswered: Collection[str]
    """The addresses of the coordinators that did not answer in time."""

    @staticmethod
    def sum(replies: Collection[CountsReply], unanswered: Collection[str]) -> ClusterCounts:
        """Returns the sums over `replies`, one of each coordinator that answered."""
        lifetime, recent = RequestCounters(), RequestCounters()
        for reply in replies:
            lifetime.add(reply.lifetime)
            recent.add(reply.recent)
        return ClusterCounts(
            lifetime,
            recent,
            num_running=sum(reply.num_running for reply in replies),
            num_waiting=sum(reply.num_waiting for reply in replies),
            num_coordinators=len(replies),
            unanswered=unanswered,
        )

    @property
    def num_unfinished(self) -> int:
        """The number of requests that have not ended, whether they run or wait."""
        return self.num_running + self.num_waiting
