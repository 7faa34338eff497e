"""`Router`: the decision where a request runs, as a value with its reason. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from coordinator.cost import Assigned, Cost, compute_s, queue_s, transfer_s, wait_s
from coordinator.registry import LiveNode, Registry
from protocol.ids import Node

NOTHING_ASSIGNED = Assigned()


@dataclass(frozen=True)
class Demand:
    """What routing needs to know of a request. `num_tokens` of prompt; pages of prompt and answer
    in `num_pages`."""

    num_tokens: int
    num_pages: int
    owned_pages: Mapping[Node, int]
    """Leading pages of the prompt that a node owns (`PrefixIndex.match`)."""


@dataclass(frozen=True)
class Route:
    """Where a request runs. `prefill` None: the decode node computes the prompt itself."""

    prefill: Node | None
    decode: Node
    prefill_address: str
    decode_address: str
    uncached_tokens: int
    cost: Cost
    reason: str


class NoRoute(Exception):
    """No decode node is alive or large enough; the message says so to a client."""


class Router:
    """Chooses the least score over all pairs; ties go to the less loaded, then by name."""

    def __init__(self, local_prefill_max_tokens: int) -> None:
        """Up to so many uncached tokens a decode node may compute itself, if that is cheaper."""
        self._local_prefill_max_tokens = local_prefill_max_tokens

    def route(
        self,
        demand: Demand,
        registry: Registry,
        assigned: Mapping[str, Assigned],
        avoid: Collection[str] = (),
    ) -> Route:
        """`assigned` by node name; `avoid`: names of nodes that failed this request: of decode
        nodes they are taken when there is no other, instead of prefill nodes decode computes.

        Raises NoRoute.
        """
        decodes = [d for d in registry.live("decode") if demand.num_pages <= d.info.num_pages]
        if not decodes:
            raise NoRoute(f"no decode node with room for {demand.num_pages} pages is alive")
        decodes = [d for d in decodes if d.node.name not in avoid] or decodes
        prefills = [
            p
            for p in registry.live("prefill")
            if p.node.name not in avoid and _pages_of_prompt(demand, p) <= p.info.num_pages
        ]
        candidates = sorted(
            self._candidates(demand, prefills, decodes, assigned),
            key=lambda c: (c[0].score, _load(c[1], assigned) + _load(c[2], assigned)),
        )
        cost, prefill, decode = candidates[0]
        owner = prefill or decode
        return Route(
            prefill=prefill.node if prefill else None,
            decode=decode.node,
            prefill_address=prefill.info.control_address if prefill else "",
            decode_address=decode.info.control_address,
            uncached_tokens=_uncached_tokens(demand, owner),
            cost=cost,
            reason=_reason(demand, prefill, decode, cost, len(candidates)),
        )

    def _candidates(
        self,
        demand: Demand,
        prefills: list[LiveNode],
        decodes: list[LiveNode],
        assigned: Mapping[str, Assigned],
    ) -> Iterator[tuple[Cost, LiveNode | None, LiveNode]]:
        for decode in decodes:
            mine = assigned.get(decode.node.name, NOTHING_ASSIGNED)
            owned = demand.owned_pages.get(decode.node, 0)
            wait = wait_s(decode, mine, demand.num_pages - owned)
            uncached = _uncached_tokens(demand, decode)
            if not prefills or uncached <= self._local_prefill_max_tokens:
                # Its chunks also slow down the answers that run beside it.
                compute = compute_s(decode, uncached) * (1 + decode.load.num_running)
                yield Cost(queue_s(decode, mine), compute, 0.0, wait), None, decode
            layout = decode.info.layout
            missing = _pages_of_prompt(demand, decode) - min(owned, _reusable(demand, decode))
            for prefill in prefills:
                cost = Cost(
                    queue_s(prefill, assigned.get(prefill.node.name, NOTHING_ASSIGNED)),
                    compute_s(prefill, _uncached_tokens(demand, prefill)),
                    transfer_s(missing * layout.page_bytes, prefill),
                    wait,
                )
                yield cost, prefill, decode


def _pages_of_prompt(demand: Demand, live: LiveNode) -> int:
    return live.info.layout.num_pages(demand.num_tokens)


def _reusable(demand: Demand, live: LiveNode) -> int:
    """Pages that a prompt may hit: all but the one of its last token."""
    return (demand.num_tokens - 1) // live.info.layout.page_size


def _uncached_tokens(demand: Demand, live: LiveNode) -> int:
    owned = min(demand.owned_pages.get(live.node, 0), _reusable(demand, live))
    return demand.num_tokens - owned * live.info.layout.page_size


def _load(live: LiveNode | None, assigned: Mapping[str, Assigned]) -> float:
    if live is None:
        return 0.0
    mine = assigned.get(live.node.name, NOTHING_ASSIGNED)
    return live.load.num_running + live.load.num_waiting + mine.requests


def _reason(
    demand: Demand, prefill: LiveNode | None, decode: LiveNode, cost: Cost, num_candidates: int
) -> str:
    owner = prefill or decode
    pages = _pages_of_prompt(demand, owner)
    owned = min(demand.owned_pages.get(owner.node, 0), _reusable(demand, owner))
    where = (
        f"prefill on {prefill.node.name}" if prefill else f"{decode.node.name} prefills for itself"
    )
    return (
        f"{where}: {owned} of {pages} pages cached there, queue {cost.queue_s * 1e3:.0f} ms, "
        f"compute {cost.compute_s * 1e3:.0f} ms; decode on {decode.node.name}: transfer "
        f"{cost.transfer_s * 1e3:.0f} ms, wait {cost.wait_s * 1e3:.0f} ms; "
        f"least of {num_candidates} candidates"
    )
