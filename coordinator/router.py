"""`Router`: the decision where a request runs, as a value with its reason. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from coordinator.cost import Assigned, Cost, compute_s, queue_s, transfer_s, wait_s
from coordinator.registry import LiveNode, Registry
from protocol.ids import Node

NOTHING_ASSIGNED = Assigned()


@dataclass(frozen=True)
class Prompt:
    """What routing needs to know of a request. `num_pages` covers prompt and answer."""

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
    """No decode node is alive; the message says so to a client."""


class Router:
    """Chooses the least score over all pairs; ties go to the less loaded, then by name."""

    def __init__(self, local_prefill_max_tokens: int) -> None:
        """Up to so many uncached tokens a decode node may compute itself, if that is cheaper."""
        self._local_prefill_max_tokens = local_prefill_max_tokens

    def route(
        self,
        prompt: Prompt,
        registry: Registry,
        assigned: Mapping[str, Assigned],
        avoid: Collection[str] = (),
    ) -> Route:
        """`assigned` by node name; `avoid`: names of nodes that failed this request, taken only
        when there are no others. Raises NoRoute."""
        prefills = _preferred(registry.live("prefill"), avoid)
        decodes = _preferred(registry.live("decode"), avoid)
        if not decodes:
            raise NoRoute("no decode node is alive")
        candidates = sorted(
            self._candidates(prompt, prefills, decodes, assigned),
            key=lambda c: (c[0].score, _load(c[1], assigned) + _load(c[2], assigned)),
        )
        cost, prefill, decode = candidates[0]
        owner = prefill or decode
        return Route(
            prefill=prefill.node if prefill else None,
            decode=decode.node,
            prefill_address=prefill.info.control_address if prefill else "",
            decode_address=decode.info.control_address,
            uncached_tokens=_uncached_tokens(prompt, owner),
            cost=cost,
            reason=_reason(prompt, prefill, decode, cost, len(candidates)),
        )

    def _candidates(
        self,
        prompt: Prompt,
        prefills: list[LiveNode],
        decodes: list[LiveNode],
        assigned: Mapping[str, Assigned],
    ) -> Iterator[tuple[Cost, LiveNode | None, LiveNode]]:
        for decode in decodes:
            mine = assigned.get(decode.node.name, NOTHING_ASSIGNED)
            owned = prompt.owned_pages.get(decode.node, 0)
            wait = wait_s(decode, mine, prompt.num_pages - owned)
            uncached = _uncached_tokens(prompt, decode)
            if not prefills or uncached <= self._local_prefill_max_tokens:
                # Its chunks also slow down the answers that run beside it.
                compute = compute_s(decode, uncached) * (1 + decode.load.num_running)
                yield Cost(queue_s(decode, mine), compute, 0.0, wait), None, decode
            layout = decode.info.layout
            missing = layout.num_pages(prompt.num_tokens) - min(owned, _reusable(prompt, decode))
            for prefill in prefills:
                cost = Cost(
                    queue_s(prefill, assigned.get(prefill.node.name, NOTHING_ASSIGNED)),
                    compute_s(prefill, _uncached_tokens(prompt, prefill)),
                    transfer_s(missing * layout.page_bytes, prefill),
                    wait,
                )
                yield cost, prefill, decode


def _reusable(prompt: Prompt, live: LiveNode) -> int:
    """Pages that a prompt may hit: all but the one of its last token."""
    return (prompt.num_tokens - 1) // live.info.layout.page_size


def _uncached_tokens(prompt: Prompt, live: LiveNode) -> int:
    owned = min(prompt.owned_pages.get(live.node, 0), _reusable(prompt, live))
    return prompt.num_tokens - owned * live.info.layout.page_size


def _preferred(nodes: list[LiveNode], avoid: Collection[str]) -> list[LiveNode]:
    return [live for live in nodes if live.node.name not in avoid] or nodes


def _load(live: LiveNode | None, assigned: Mapping[str, Assigned]) -> float:
    if live is None:
        return 0.0
    mine = assigned.get(live.node.name, NOTHING_ASSIGNED)
    return live.load.num_running + live.load.num_waiting + mine.requests


def _reason(
    prompt: Prompt, prefill: LiveNode | None, decode: LiveNode, cost: Cost, num_candidates: int
) -> str:
    owner = prefill or decode
    pages = owner.info.layout.num_pages(prompt.num_tokens)
    owned = min(prompt.owned_pages.get(owner.node, 0), _reusable(prompt, owner))
    where = (
        f"prefill on {prefill.node.name}" if prefill else f"{decode.node.name} prefills for itself"
    )
    return (
        f"{where}: {owned} of {pages} pages cached there, queue {cost.queue_s * 1e3:.0f} ms, "
        f"compute {cost.compute_s * 1e3:.0f} ms; decode on {decode.node.name}: transfer "
        f"{cost.transfer_s * 1e3:.0f} ms, wait {cost.wait_s * 1e3:.0f} ms; "
        f"least of {num_candidates} candidates"
    )
