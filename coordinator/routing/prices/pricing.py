"""`Pricing`: what one request would cost on each node, for each of its tasks. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from coordinator.routing.cost import (
    DEFAULT_LINK_BYTES_PER_S,
    Costs,
    Floats,
    Terms,
    step_under_way_s,
    weigh,
)
from coordinator.routing.demand import Demand, PageOwners
from coordinator.routing.node_queue import most_equal_s
from coordinator.routing.prices import terms
from coordinator.routing.prices.candidates import Fetches, PricedNodes
from coordinator.routing.prices.figures import Figures, NodeFigures
from coordinator.routing.prices.planned import PlannedWork
from coordinator.routing.prices.terms import Bools
from coordinator.routing.registry import LiveNode
from protocol.ids import Node
from protocol.layout import KVLayout


class Cluster(msgspec.Struct, frozen=True):
    """The nodes as a coordinator sees them at one moment."""

    prefill: NodeFigures
    decode: NodeFigures
    find: Callable[[Node], LiveNode | None]
    """Returns any live node, also one that gets no new requests, since pages can still be fetched
    from it."""
    link_bytes_per_s: float
    """The bandwidth between any two nodes; 0 if it was not measured yet."""
    hit_share: float
    """The share of pages that were found in a cache, of those that prompts asked for lately."""
    planned: PlannedWork
    now: float


class Pricing:
    """Estimates what a request costs on all nodes of some figures at once."""

    def __init__(
        self,
        demand: Demand,
        owners: PageOwners,
        cluster: Cluster,
        layout: KVLayout,
        may_fetch: bool,
    ) -> None:
        self._demand = demand
        self._owners = owners
        self._cluster = cluster
        self._num_prompt_pages = layout.num_pages(demand.num_tokens)
        self._page_size = layout.page_size
        self._page_bytes = layout.page_bytes
        # All pages that a prompt may hit: never the one of its last token, whose logits are needed.
        self._num_reusable = demand.num_reusable // layout.page_size
        # A node that receives the prompt from the one that computes it needs no logits before.
        self._num_received = (demand.num_tokens - 1) // layout.page_size
        self._link_bytes_per_s = cluster.link_bytes_per_s or DEFAULT_LINK_BYTES_PER_S
        self._source, source_pages = self._best_source() if may_fetch else (None, 0)
        self._source_pages = min(source_pages, self._num_reusable)
        self._tokens_behind_source = demand.num_tokens - self._source_pages * layout.page_size
        measured = self._source.load.link_bytes_per_s if self._source is not None else 0.0
        self._source_bytes_per_s = measured or self._link_bytes_per_s

    def computing(self, nodes: NodeFigures) -> PricedNodes:
        """Returns the nodes as those that compute the prompt: each from what it has itself, or
        after fetching the longest prefix that another node could send, whichever costs less."""
        figures = nodes.all
        owned = np.minimum(self.owned_pages(nodes), self._num_reusable)
        alone_s, rest_s = self._chunks(figures, owned)
        queue_s, step_s = self._queues(nodes, figures.step_s + np.minimum(alone_s, rest_s))
        fetches, fetch_s, chunk_s = self._fetches(owned, queue_s, alone_s, rest_s)
        compute_s = figures.step_s + chunk_s
        cost = Costs(
            queue_s=queue_s,
            fetch_s=fetch_s,
            compute_s=compute_s,
            wait_s=step_s,
            evict_s=self._evict_s(nodes, self._num_prompt_pages - owned),
            passing_s=self._passing_s(nodes, compute_s),
        )
        return PricedNodes(nodes, owned, cost, cost.scores, fetches)

    def answering(self, nodes: NodeFigures) -> PricedNodes:
        """Returns the nodes as those that answer; pages of the prompt come from elsewhere."""
        owned = self.owned_pages(nodes)
        num_bytes = (self._num_prompt_pages - owned) * self._page_bytes
        num_before = nodes.by_name(self._cluster.planned.requests)
        cost = Costs(
            transfer_s=terms.move_s(num_bytes, self._link_bytes_per_s),
            wait_s=terms.wait_s(nodes.all, self.is_full(nodes, owned), num_before),
            evict_s=self._evict_s(nodes, self._demand.admission_pages - owned),
        )
        return PricedNodes(nodes, owned, cost, cost.scores, None)

    def both(self, answering: PricedNodes) -> PricedNodes:
        """Returns the nodes as those that do both tasks: nothing is sent, but the chunks of the
        prompt slow down the answers beside it."""
        nodes, figures = answering.figures, answering.figures.all
        owned = np.minimum(answering.owned_pages, self._num_reusable)
        alone_s, rest_s = self._chunks(figures, owned)
        queue_s, step_s = self._queues(nodes, np.minimum(alone_s, rest_s))
        queue_s = queue_s * figures.spread
        # Steps are needed for answers anyway, so the prompt waits for them, and works only what it
        # adds.
        fetches, fetch_s, compute_s = self._fetches(owned, queue_s, alone_s, rest_s)
        wait_s = answering.costs.wait_s + figures.step_s + (figures.spread - 1.0) * compute_s
        cost = Costs(
            queue_s=queue_s,
            fetch_s=fetch_s,
            compute_s=compute_s,
            wait_s=wait_s + step_s,
            evict_s=answering.costs.evict_s,
            delay_s=figures.num_running * compute_s,
            passing_s=self._passing_s(nodes, compute_s),
        )
        return PricedNodes(nodes, owned, cost, cost.scores, fetches)

    def is_full(self, nodes: NodeFigures, owned: Floats, kept_pages: Terms = 0.0) -> Bools:
        """Returns at which nodes, of which each has `owned` leading pages, the request would have
        to wait for a place or pages, if `kept_pages` are to be left."""
        num_pages = self._demand.admission_pages - owned
        if self._cluster.planned.pages:
            num_pages += nodes.by_name(self._cluster.planned.pages)
        return terms.is_full(nodes.all, num_pages + kept_pages)

    def _chunks(self, figures: Figures[Floats], owned: Floats) -> tuple[Floats, Floats]:
        """Returns how much longer steps of the nodes take with the rest of the prompt behind the
        pages that each owns, and with that behind the pages which could be fetched."""
        num_tokens = self._demand.num_tokens - owned * self._page_size
        return (
            terms.chunk_s(figures, num_tokens),
            terms.chunk_s(figures, self._tokens_behind_source),
        )

    def _queues(self, nodes: NodeFigures, works_s: Floats) -> tuple[Terms, Terms]:
        """Returns how long what is in the queues of the nodes and what is planned will take before
        they begin with the prompt, if that takes `works_s`, and how long it waits for the end of a
        step with longer ones. That is no part of the queue: where requests wait for their turn, it
        is the same."""
        now, planned = self._cluster.now, self._cluster.planned
        if not nodes.busy and not planned.computing:
            return 0.0, 0.0
        queues_s, steps_s = np.zeros(len(nodes)), np.zeros(len(nodes))
        queues_s[list(nodes.busy)] = [queue.seconds(now) for queue in nodes.busy.values()]
        for place in _passing(nodes, works_s):
            queue, all_s = nodes.busy[place], queues_s.item(place)
            queues_s[place] = before_s = queue.seconds_before(works_s.item(place), now)
            steps_s[place] = step_under_way_s(nodes.nodes[place], all_s - before_s)
        for name in planned.computing:
            place_of_name = nodes.place(name)
            if place_of_name is not None:
                lets_pass = nodes.nodes[place_of_name].info.chunk_tokens > 0
                work_s = works_s.item(place_of_name) if lets_pass else float("inf")
                queues_s[place_of_name] += planned.seconds_before(name, work_s)
        return queues_s, steps_s

    def _passing_s(self, nodes: NodeFigures, compute_s: Floats) -> Terms:
        """Returns how much later the longer prompts at the nodes end together because they let this
        one pass."""
        passed = _passing(nodes, compute_s)
        if not passed:
            return 0.0
        passing_s = np.zeros(len(nodes))
        for place in passed:
            work_s = compute_s.item(place)
            passing_s[place] = work_s * nodes.busy[place].num_longer(work_s)
        return passing_s

    def _fetches(
        self, owned: Floats, queue_s: Terms, alone_s: Floats, rest_s: Floats
    ) -> tuple[Fetches | None, Terms, Floats]:
        """Returns which nodes should fetch pages, how long that takes, and how much longer their
        steps then take with the rest of the prompt."""
        if self._source is None or not self._source_pages:
            return None, 0.0, alone_s
        num_bytes = (self._source_pages - owned) * self._page_bytes
        fetch_s = terms.move_s(num_bytes, self._source_bytes_per_s)
        fetching_s, without_s = weigh(queue_s, fetch_s, rest_s), weigh(queue_s, 0.0, alone_s)
        # It never is for a node that has as much as the source, which would compute no less then.
        is_better = np.less(fetching_s, without_s)
        if not np.count_nonzero(is_better):
            return None, 0.0, alone_s
        fetches = Fetches(is_better, self._source, self._source_pages)
        return fetches, np.where(is_better, fetch_s, 0.0), np.where(is_better, rest_s, alone_s)

    def _evict_s(self, nodes: NodeFigures, num_new_pages: Floats) -> Terms:
        return terms.evict_s(nodes.all, num_new_pages, self._page_size, self._cluster.hit_share)

    def owned_pages(self, nodes: NodeFigures) -> Floats:
        """Returns how many leading pages the nodes have or will have, and need not be sent."""
        # Expected pages count as owned: they will be there before this prompt is, as prompts are
        # computed in the order in which they were sent. To be fetched, pages must be there now.
        owned: Floats = np.minimum(nodes.by_node(self._owners.expected), self._num_received)
        return owned

    def _best_source(self) -> tuple[LiveNode | None, int]:
        """Returns the node that owns most of the prompt now, and how many pages; among equals the
        one that does least.

        A node at which an earlier attempt failed is left out: it may be dead while its pages are
        still in the index.
        """
        best, best_pages, best_load = None, 0, 0
        for node, pages in self._owners.owned.items():
            live = self._cluster.find(node)
            if live is None or pages < best_pages or node.name in self._demand.avoid:
                continue
            load = live.load.num_running + live.load.num_waiting
            # Fewer pages were passed over above: here there are more, or as many at another node.
            if pages > best_pages or load < best_load:
                best, best_pages, best_load = live, pages, load
        return best, best_pages


def _passing(nodes: NodeFigures, works_s: Floats) -> list[int]:
    """Returns the places of the nodes at which a prompt that takes `works_s` passes a longer
    one."""
    if not nodes.busy:
        return []
    places: list[int] = np.nonzero(nodes.all.passed_s > most_equal_s(works_s))[0].tolist()
    return places
