"""`RoutedRequest`: everything that routing knows of one request. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.routing.demand import Demand
from coordinator.routing.node_queue import Booking, NodeQueueEstimate


@dataclass(eq=False)
class RoutedRequest:
    """One request while it waits for nodes (then the dispatch queue has it) or uses them.

    The dispatch queue and the placement keep what they know of a request here, so that nothing
    about it has to be found, or forgotten, in several places.
    """

    request_id: str
    demand: Demand
    arrived: float
    """When the client asked; a second attempt keeps the time of the first."""
    work_s: float = 0.0
    """Least time that its prompt takes to compute, with the longest prefix that any node has."""
    skips_prefill: bool = False
    """A decode node would compute it, so busy prefill nodes do not matter."""
    was_looked_at: bool = False
    """The queue has considered it since it came."""
    booking: Booking | None = field(default=None, repr=False)
    """What it takes of the nodes that it was sent to; None while it waits, and in the end."""
    computing: NodeQueueEstimate | None = field(default=None, repr=False)
    """The queue that its prompt is in; None when it has been computed.

    Estimates are kept here and not looked up by name: a restarted node has a new one."""
    answering: NodeQueueEstimate | None = field(default=None, repr=False)
    """The queue of the node that answers it."""
