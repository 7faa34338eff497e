"""`Router`: decides where a request runs. Pure.

A request has two tasks: its prompt is computed and it is answered. A prefill node does the first
and a decode node the second, or one node does both: a decode node beside its other answers, or a
prefill node while the decode nodes are full or gone. The router lists the candidates of each with
their costs, a policy chooses. Costs of the two tasks add up, so they are chosen apart, in time
linear in the nodes.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import numpy as np

from coordinator.routing.demand import Demand, PageOwners
from coordinator.routing.policies import TIE_S, Policy
from coordinator.routing.prices.candidates import CandidateList, Places, PricedNodes
from coordinator.routing.prices.figures import NodeFigures
from coordinator.routing.prices.pricing import Cluster, Pricing
from coordinator.routing.route import Route, no_room

KEPT_FOR_PROMPTS = 0.5
"""The share of a prefill node's pages that answers leave to prompts."""


class Candidates(msgspec.Struct, frozen=True):
    """Everything that was weighed: nodes that would compute the prompt for another, decode nodes
    that would answer, and nodes that would do both."""

    prefill: CandidateList
    decode: CandidateList
    both: CandidateList


class Router:
    """Estimates the cost of every candidate and lets `policy` choose."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def mixes_work(self) -> bool:
        """True if decode nodes may compute prompts although there are prefill nodes."""
        return self._policy.mixes_work

    def route(self, demand: Demand, owners: PageOwners, cluster: Cluster) -> Route:
        """Returns the policy's choice. Raises NoRoute."""
        return self.choose(demand, self.candidates(demand, owners, cluster))

    def candidates(self, demand: Demand, owners: PageOwners, cluster: Cluster) -> Candidates:
        """Returns all candidates for both tasks. Raises NoRoute if no node could answer."""
        decodes, stand_ins = _able_to_answer(demand, cluster)
        layout = (cluster.decode.nodes or cluster.prefill.nodes)[0].info.layout
        pricing = Pricing(demand, owners, cluster, layout, may_fetch=self._policy.weighs_cost)
        prefills = _places(cluster.prefill, layout.num_pages(demand.num_tokens), demand.avoid)
        computing = CandidateList((pricing.computing(cluster.prefill), prefills))
        answering = pricing.answering(cluster.decode)
        # Without prefill nodes decode nodes must do both, whatever it costs.
        must_do_both = self._policy.mixes_work or not computing
        both = [(pricing.both(answering), decodes)] if must_do_both else []
        stand_ins = self._stand_ins(pricing, answering, decodes, stand_ins, cluster.prefill)
        if len(stand_ins):
            both.append((pricing.both(pricing.answering(cluster.prefill)), stand_ins))
        return Candidates(computing, CandidateList((answering, decodes)), CandidateList(*both))

    def _stand_ins(
        self,
        pricing: Pricing,
        answering: PricedNodes,
        decodes: Places,
        stand_ins: Places,
        prefill: NodeFigures,
    ) -> Places:
        """Returns which of the prefill nodes at `stand_ins` may answer: all if no decode node can;
        while all decode nodes are full, those that keep a share of their pages for what they are
        there for, as a prompt that finds no pages holds up all behind it."""
        if not len(decodes) or not len(stand_ins):
            return stand_ins
        if not self._policy.mixes_work:
            return stand_ins[:0]
        is_full = pricing.is_full(answering.figures, answering.owned_pages)
        if np.count_nonzero(is_full[decodes]) < len(decodes):
            return stand_ins[:0]
        kept_pages = np.floor(KEPT_FOR_PROMPTS * prefill.all.num_pages)
        lacks_room = pricing.is_full(prefill, pricing.owned_pages(prefill), kept_pages)
        return stand_ins[~lacks_room[stand_ins]]

    def choose(self, demand: Demand, candidates: Candidates) -> Route:
        """Returns the policy's choice, with its reason."""
        prefills, decodes, doing_both = candidates.prefill, candidates.decode, candidates.both
        at_both = self._policy.choose(doing_both, "decode") if doing_both else 0
        both = doing_both[at_both] if doing_both else None
        if not prefills or not decodes:
            assert both is not None  # some node can answer
            return Route.of(demand, both, both, [doing_both.second_best(at_both)])
        at_prefill = self._policy.choose(prefills, "prefill")
        prefill, decode = prefills[at_prefill], decodes[self._policy.choose(decodes, "decode")]
        apart_s = prefill.score + decode.score
        # On a tie one node does both: nothing has to be sent then.
        if both is not None and both.score <= apart_s + TIE_S:
            others = [doing_both.second_best(at_both), (apart_s, prefill)]
            return Route.of(demand, both, both, others)
        # A runner-up on another prefill node would have had the same decode node.
        second = prefills.second_best(at_prefill, decode.score)
        others = [second, (both.score, both) if both is not None else None]
        return Route.of(demand, prefill, decode, others)


def _able_to_answer(demand: Demand, cluster: Cluster) -> tuple[Places, Places]:
    """Returns the places of the decode nodes that could answer, and of the prefill nodes that could
    do it in their stead. Raises NoRoute if all nodes are too small.

    A node that has failed this request is better than none.
    """
    nodes = cluster.decode, cluster.prefill
    decodes, stand_ins = (_places(one, demand.num_pages, demand.avoid) for one in nodes)
    if not len(decodes) and not len(stand_ins):
        decodes, stand_ins = (_places(one, demand.num_pages, ()) for one in nodes)
        if not len(decodes) and not len(stand_ins):
            raise no_room(demand.num_pages)
    return decodes, stand_ins


def _places(nodes: NodeFigures, num_pages: int, avoid: Collection[str]) -> Places:
    """Returns the places of the nodes with at least `num_pages`, without those of names to
    avoid."""
    if not avoid and num_pages <= nodes.least_pages:
        return nodes.everywhere
    is_able = nodes.all.num_pages >= num_pages
    for name in avoid:
        place = nodes.place(name)
        if place is not None:
            is_able[place] = False
    return is_able.nonzero()[0]
