"""What a request costs on one node, in plain numbers: what the product's arrays are compared with.

Nothing is remembered and nothing is shared: each function looks at one node, and asks its queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.routing.cost import (
    ANSWER_STEPS,
    DEFAULT_STEP_S,
    DELAY_WEIGHT,
    EVICTED_REUSE,
    HOP_S,
    OWN_WORK_WEIGHT,
    Cost,
    spread,
    step_under_way_s,
)
from coordinator.routing.demand import Demand, PageOwners
from coordinator.routing.node_queue import NodeQueueEstimate
from coordinator.routing.prices.planned import PlannedWork
from coordinator.routing.registry import LiveNode
from protocol.ids import Node
from protocol.layout import KVLayout


@dataclass(frozen=True)
class PlainPrices:
    """The costs of one request. `source` is the node that pages may be fetched from, which has the
    first `source_pages` of those that may be reused."""

    demand: Demand
    owners: PageOwners
    queues: Mapping[str, NodeQueueEstimate]
    planned: PlannedWork
    layout: KVLayout
    link_bytes_per_s: float
    hit_share: float
    now: float
    source: LiveNode | None
    source_pages: int

    def computing(self, live: LiveNode) -> tuple[Cost, int]:
        """Returns what it costs if the node computes for another, and the pages it fetches."""
        owned = self.reusable(live)
        rate, step_s = live.prefill_tokens_per_s, live.step_s
        work_s = step_s + self.least_tokens(owned) / rate
        queue_s = self.queue_s(live, work_s)
        fetch_s, num_tokens = self.fetch(live, owned, queue_s)
        compute_s = step_s + num_tokens / rate
        cost = Cost(
            queue_s=queue_s,
            fetch_s=fetch_s,
            compute_s=compute_s,
            wait_s=self.under_way_s(live, work_s),
            evict_s=self.evict_s(live, self.layout.num_pages(self.demand.num_tokens) - owned),
            passing_s=self.passing_s(live, compute_s),
        )
        return cost, self.source_pages if fetch_s else 0

    def answering(self, live: LiveNode) -> tuple[Cost, int]:
        """Returns what it costs if the node answers and others compute; it fetches nothing."""
        owned = self.owned(live.node)
        num_pages = self.layout.num_pages(self.demand.num_tokens) - owned
        cost = Cost(
            transfer_s=2 * HOP_S + num_pages * self.layout.page_bytes / self.link_bytes_per_s,
            wait_s=self.wait_s(live, self.demand.admission_pages - owned),
            evict_s=self.evict_s(live, self.demand.admission_pages - owned),
        )
        return cost, 0

    def both(self, live: LiveNode) -> tuple[Cost, int]:
        """Returns what it costs if the node does both, and the pages it fetches."""
        owned = self.reusable(live)
        rate, num_running = live.prefill_tokens_per_s, live.load.num_running
        times = spread(live) if num_running else 1.0
        work_s = self.least_tokens(owned) / rate
        queue_s = self.queue_s(live, work_s) * times
        fetch_s, num_tokens = self.fetch(live, owned, queue_s)
        compute_s = num_tokens / rate
        answering, _ = self.answering(live)
        wait_s = answering.wait_s + live.step_s + (times - 1.0) * compute_s
        cost = Cost(
            queue_s=queue_s,
            fetch_s=fetch_s,
            compute_s=compute_s,
            wait_s=wait_s + self.under_way_s(live, work_s),
            evict_s=answering.evict_s,
            delay_s=num_running * compute_s,
            passing_s=self.passing_s(live, compute_s),
        )
        return cost, self.source_pages if fetch_s else 0

    def owned(self, node: Node) -> int:
        num_received = (self.demand.num_tokens - 1) // self.layout.page_size
        return min(self.owners.expected.get(node, 0), num_received)

    def reusable(self, live: LiveNode) -> int:
        return min(self.owned(live.node), self.demand.num_reusable // self.layout.page_size)

    def least_tokens(self, owned: int) -> int:
        most_owned = max(owned, self.source_pages)
        return self.demand.num_tokens - most_owned * self.layout.page_size

    def queue_s(self, live: LiveNode, work_s: float) -> float:
        queue, name = self.queues.get(live.node.name), live.node.name
        if not live.info.chunk_tokens:
            queue_s = queue.seconds(self.now) if queue is not None else 0.0
            return queue_s + self.planned.seconds_before(name, float("inf"))
        queue_s = queue.seconds_before(work_s, self.now) if queue is not None else 0.0
        return queue_s + self.planned.seconds_before(name, work_s)

    def under_way_s(self, live: LiveNode, work_s: float) -> float:
        queue = self.queues.get(live.node.name)
        if queue is None or not live.info.chunk_tokens:
            return 0.0
        longer_s = queue.seconds(self.now) - queue.seconds_before(work_s, self.now)
        return step_under_way_s(live, longer_s)

    def passing_s(self, live: LiveNode, compute_s: float) -> float:
        queue = self.queues.get(live.node.name)
        if queue is None or not live.info.chunk_tokens:
            return 0.0
        return compute_s * queue.num_longer(compute_s)

    def fetch(self, live: LiveNode, owned: int, queue_s: float) -> tuple[float, int]:
        """Returns how long the node fetches, and the tokens that it then computes."""
        num_tokens = self.demand.num_tokens - owned * self.layout.page_size
        if self.source is None or owned >= self.source_pages:
            return 0.0, num_tokens
        bytes_per_s = self.source.load.link_bytes_per_s or self.link_bytes_per_s
        num_bytes = (self.source_pages - owned) * self.layout.page_bytes
        fetch_s = 2 * HOP_S + num_bytes / bytes_per_s
        rest = self.demand.num_tokens - self.source_pages * self.layout.page_size
        rest_s, alone_s = rest / live.prefill_tokens_per_s, num_tokens / live.prefill_tokens_per_s
        if max(queue_s, fetch_s) + OWN_WORK_WEIGHT * rest_s < queue_s + OWN_WORK_WEIGHT * alone_s:
            return fetch_s, rest
        return 0.0, num_tokens

    def evict_s(self, live: LiveNode, num_new_pages: int) -> float:
        if num_new_pages <= live.load.free_pages:
            return 0.0
        num_tokens = num_new_pages * self.layout.page_size
        reuse = self.hit_share * EVICTED_REUSE
        return OWN_WORK_WEIGHT * reuse * num_tokens / live.prefill_tokens_per_s

    def wait_s(self, live: LiveNode, num_new_pages: int) -> float:
        queue, max_running = self.queues.get(live.node.name), live.info.max_running_requests
        num_requests = live.load.num_running + live.load.num_waiting
        num_pages = num_new_pages + self.planned.pages.get(live.node.name, 0)
        if queue is not None:
            num_requests = max(num_requests, queue.num_requests)
            num_pages += queue.promised_pages
        step_s = live.step_s or DEFAULT_STEP_S
        wait_s = step_s * (1 + num_requests / max_running)
        if num_requests >= max_running or num_pages > live.load.room_pages:
            num_ahead = max(0, num_requests - max_running)
            num_ahead_in_all = num_ahead + self.planned.requests.get(live.node.name, 0.0)
            wait_s += step_s * ANSWER_STEPS * (1 + num_ahead_in_all / max_running)
        return wait_s


def plain_score(cost: Cost) -> float:
    """Returns the weighted sum of the terms of a cost."""
    return (
        max(cost.queue_s, cost.fetch_s)
        + OWN_WORK_WEIGHT * cost.compute_s
        + cost.transfer_s
        + cost.wait_s
        + cost.evict_s
        + DELAY_WEIGHT * cost.delay_s
        + cost.passing_s
    )
