"""`RoutedRequest`: everything that routing knows of one request. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.admission.turns import Work
from coordinator.routing.demand import Demand
from coordinator.routing.node_queue import Booking, NodeQueueEstimate


@dataclass(eq=False)
class RoutedRequest:
    """What routing knows of one request, while it waits for nodes or uses them.

    The dispatch queue and the placement keep what they know of a request here, so that nothing
    about it has to be found, or forgotten, in several places.
    """

    request_id: str
    demand: Demand
    arrived: float
    """When the client asked; a second attempt keeps the time of the first. It moves on by the
    length of each pause of the cluster."""
    priority: int = 0
    """Of those of its tenant that wait, requests of a higher priority go first."""
    tenant: str = ""
    """Who shares the cluster with others: it is fair between tenants."""
    most_answer_tokens: int = 1
    """The most tokens that its answer may have."""
    work: Work | None = field(default=None, repr=False)
    """What it takes of its tenant's share; None until it has waited for its turn."""
    work_s: float = 0.0
    """The least time that its prompt takes to compute, from the longest prefix that any node
    has."""
    skips_prefill: bool = False
    """True if no prefill node may compute its prompt, so that it does not matter how busy they
    are."""
    was_looked_at: bool = False
    """True once the dispatch queue has considered it."""
    booking: Booking | None = field(default=None, repr=False)
    """What it takes of the nodes that it was sent to; None while it waits, and again at its end."""
    computing: NodeQueueEstimate | None = field(default=None, repr=False)
    """The queue that its prompt is in; None once it has been computed.

    Queues are kept here and not looked up by name, since a node that restarts has a new one.
    """
    answering: NodeQueueEstimate | None = field(default=None, repr=False)
    """The queue of the node that answers it."""
