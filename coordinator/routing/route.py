"""`Route`: where a request runs, as a value with its reason and runner-up. Pure."""

from __future__ import annotations

import msgspec

from coordinator.routing.cost import Cost
from coordinator.routing.demand import Demand
from coordinator.routing.prices.candidates import Candidate
from protocol.ids import Node


class NoRoute(Exception):
    """No node is alive, or none is large enough. The message says so to a client."""


def no_room(num_pages: int) -> NoRoute:
    """Returns the error for a request that needs more pages than any node has."""
    return NoRoute(f"no node with room for {num_pages} pages takes requests")


class Route(msgspec.Struct, frozen=True):
    """Where a request runs, and why. `decode` is the node that answers, whatever its role; without
    a `prefill` node it computes the prompt itself."""

    prefill: Node | None
    decode: Node
    prefill_address: str
    decode_address: str
    fetch_from: Node | None
    fetch_address: str
    fetch_pages: int
    """How many leading pages the computing node is to have after fetching; 0 if nothing is
    fetched."""
    cached_pages: int
    """How many leading pages need no computing there."""
    decode_pages: int
    """How many pages of prompt and answer the decode node has already."""
    busy_s: float
    """The estimated time that the request occupies the computing node: its work, and the end of a
    fetch that takes longer than the queue."""
    queue_s: float
    """How long the computing node has other prompts to compute first."""
    cost: Cost
    reason: str
    runner_up: str

    @classmethod
    def of(
        cls,
        demand: Demand,
        computing: Candidate,
        answering: Candidate,
        others: list[tuple[float, Candidate] | None],
    ) -> Route:
        """Returns the route over these candidates, which are one and the same if a decode node does
        both tasks.

        `others` are the best alternatives to `computing`, each with the score of its whole route;
        None stands for one that there is not.
        """
        is_apart = computing is not answering
        cost = computing.cost + answering.cost if is_apart else computing.cost
        source = computing.fetch_from
        return cls(
            prefill=computing.live.node if is_apart else None,
            decode=answering.live.node,
            prefill_address=computing.live.info.control_address if is_apart else "",
            decode_address=answering.live.info.control_address,
            fetch_from=source.node if source else None,
            fetch_address=source.info.control_address if source else "",
            fetch_pages=computing.fetch_pages,
            cached_pages=computing.cached_pages,
            decode_pages=answering.owned_pages,
            busy_s=max(0.0, cost.fetch_s - cost.queue_s) + computing.cost.compute_s,
            queue_s=computing.cost.queue_s,
            cost=cost,
            reason=_reason(demand, computing, answering, cost),
            runner_up=_runner_up(cost.score, others),
        )

    @property
    def computes(self) -> Node:
        """The node that computes the prompt."""
        return self.prefill or self.decode


def _reason(demand: Demand, computing: Candidate, answering: Candidate, cost: Cost) -> str:
    name, layout = computing.live.node.name, computing.live.info.layout
    where = f"prefill on {name}" if computing is not answering else f"{name} prefills for itself"
    fetched = ""
    if computing.fetch_from is not None:
        num_pages = computing.fetch_pages - computing.owned_pages
        fetched = (
            f", {num_pages} fetched from {computing.fetch_from.node.name} "
            f"in {cost.fetch_s * 1e3:.0f} ms"
        )
    return (
        f"{where}: {computing.owned_pages} of {layout.num_pages(demand.num_tokens)} pages cached "
        f"there{fetched}, queue {cost.queue_s * 1e3:.0f} ms, compute {cost.compute_s * 1e3:.0f} "
        f"ms; decode on {answering.live.node.name}: transfer {cost.transfer_s * 1e3:.0f} ms, "
        f"wait {cost.wait_s * 1e3:.0f} ms"
    )


def _runner_up(score: float, others: list[tuple[float, Candidate] | None]) -> str:
    """Returns a text that names the best alternative and how much more it would have cost."""
    known = [other for other in others if other is not None]
    if not known:
        return "no other node"
    least, best = min(known, key=lambda other: other[0])
    more_s = least - score
    return (
        f"{best.live.node.name}: {best.cached_pages} pages cached, "
        f"{abs(more_s) * 1e3:.0f} ms {'more' if more_s >= 0 else 'less'}"
    )
