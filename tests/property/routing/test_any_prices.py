"""The prices of all nodes at once are those of each alone, to the last bit, and so are choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from coordinator.routing.cost import Cost
from coordinator.routing.demand import Demand, PageOwners
from coordinator.routing.node_queue import Booking, NodeQueueEstimate
from coordinator.routing.policies import NEAR_TIE_SHARE, POLICIES, TIE_S
from coordinator.routing.prices.candidates import Candidate, CandidateList
from coordinator.routing.prices.figures import NodeFigures
from coordinator.routing.prices.planned import PlannedWork
from coordinator.routing.prices.pricing import Cluster
from coordinator.routing.registry import LiveNode
from coordinator.routing.router import Router
from protocol.ids import Node
from protocol.messages import Load
from tests.support.coordinator.nodes import LAYOUT, Nodes
from tests.support.routing.plain_prices import PlainPrices, plain_score

NAMES = ("p0", "p1", "p2", "d0", "d1", "d2")
NOW = 1.0
counts = st.sampled_from((0, 1, 2, 7, 8, 12))
pages = st.integers(0, 110)
works_s = st.sampled_from((0.016, 0.1, 0.55, 1.6, 3.0))
loads = st.builds(
    Load,
    role=st.just("decode"),
    num_running=counts,
    num_waiting=counts,
    free_pages=st.sampled_from((0, 30, 100, 1000)),
    cached_pages=counts,
    promised_pages=counts,
    prefill_tokens_per_s=st.sampled_from((0.0, 970.0, 1000.0, 3000.0)),
    step_s=st.sampled_from((0.0, 0.009, 0.011)),
    link_bytes_per_s=st.sampled_from((0.0, 1e6, 1e9)),
)
infos = st.fixed_dictionaries(
    {
        "chunk_tokens": st.sampled_from((0, 512)),
        "max_itl_s": st.sampled_from((0.0, 0.02, 0.11)),
        "num_pages": st.sampled_from((105, 1000)),
    }
)


@st.composite
def queues(draw: st.DrawFn) -> NodeQueueEstimate:
    queue = NodeQueueEstimate(draw(works_s))
    for i, work_s in enumerate(draw(st.lists(works_s, max_size=3))):
        booking = Booking(work_s, draw(counts), i / 10)
        queue.sent(booking)
        queue.promise(booking)
        queue.num_requests += 1
    if draw(st.booleans()):
        queue.heard(draw(works_s), NOW - 0.05)
    return queue


planned_works = st.builds(
    PlannedWork,
    st.dictionaries(st.sampled_from(NAMES), st.lists(works_s, max_size=2), max_size=2),
    st.dictionaries(st.sampled_from(NAMES), works_s, max_size=2),
    st.dictionaries(st.sampled_from(NAMES), counts, max_size=2),
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from((1.0, 2.5)), max_size=2),
)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Nodes, Cluster, dict[str, NodeQueueEstimate]]:
    nodes = Nodes()
    for name in sorted(draw(st.sets(st.sampled_from(NAMES), min_size=1))):
        nodes.join(name, draw(loads), **draw(infos))
    queued = draw(st.dictionaries(st.sampled_from(NAMES), queues()))
    registry = nodes.registry
    cluster = Cluster(
        prefill=NodeFigures(registry.live("prefill"), queued),
        decode=NodeFigures(registry.live("decode"), queued),
        find=registry.get,
        link_bytes_per_s=registry.link_bytes_per_s,
        hit_share=draw(st.sampled_from((0.0, 0.4))),
        planned=draw(planned_works),
        now=NOW,
    )
    return nodes, cluster, queued


@given(
    clusters(),
    st.dictionaries(st.sampled_from(NAMES), pages),
    st.integers(1, 1700),
    st.sampled_from(("cost", "disaggregate")),
)
def test_all_at_once_cost_what_each_costs_alone(
    built: tuple[Nodes, Cluster, dict[str, NodeQueueEstimate]],
    owned: dict[str, int],
    num_tokens: int,
    policy: str,
) -> None:
    nodes, cluster, queued = built
    num_pages = LAYOUT.num_pages(num_tokens)
    most = num_tokens // LAYOUT.page_size
    depths = {Node(name, 1): min(depth, most) for name, depth in owned.items()}
    owners = PageOwners(depths, depths)
    demand = Demand(num_tokens, min(num_pages + 8, 105), num_pages + 1, [])
    if not any(live.info.num_pages >= demand.num_pages for live in nodes.registry.live()):
        return
    source, source_pages = best_source(nodes, depths)
    plain = PlainPrices(
        demand, owners, queued, cluster.planned, LAYOUT, cluster.link_bytes_per_s or 1e9,
        cluster.hit_share, NOW, source,
        min(source_pages, demand.num_reusable // LAYOUT.page_size),
    )  # fmt: skip
    candidates = Router(POLICIES[policy](lambda: 0.0)).candidates(demand, owners, cluster)
    for of_task, price in (
        (candidates.prefill, plain.computing),
        (candidates.decode, plain.answering),
        (candidates.both, plain.both),
    ):
        assert_priced(of_task, price)
        if of_task:
            chosen = POLICIES[policy](lambda: 0.7).choose(of_task, "decode")
            assert chosen == plain_choice(list(of_task), 0.7)


def best_source(nodes: Nodes, owned: dict[Node, int]) -> tuple[LiveNode | None, int]:
    known = {node: live for node in owned if (live := nodes.registry.get(node)) is not None}

    def order(node: Node) -> tuple[int, int]:
        load = known[node].load
        return -owned[node], load.num_running + load.num_waiting

    best = min((node for node in known if owned[node]), key=order, default=None)
    return (known[best], owned[best]) if best is not None else (None, 0)


def assert_priced(candidates: CandidateList, price: Callable[[LiveNode], tuple[Cost, int]]) -> None:
    for one in candidates:
        cost, fetch_pages = price(one.live)
        assert msgspec.structs.asdict(one.cost) == msgspec.structs.asdict(cost)
        assert one.score == one.cost.score == plain_score(cost)
        assert one.fetch_pages == fetch_pages


def plain_choice(candidates: Sequence[Candidate], chance: float) -> int:
    """Returns the position that a policy which weighs costs chooses, one candidate at a time."""
    best = min(candidates, key=lambda one: one.score)
    if best.fetch_from is not None:
        limit = best.score * (1 + NEAR_TIE_SHARE) + TIE_S
        owners = [
            one for one in candidates if one.owned_pages >= best.fetch_pages and one.score <= limit
        ]
        best = min(owners, key=lambda one: one.score, default=best)
    equals = [i for i, one in enumerate(candidates) if one.score <= best.score + TIE_S]
    most_owned = max(candidates[i].owned_pages for i in equals)
    equals = [i for i in equals if candidates[i].owned_pages == most_owned]
    least_s = min(candidates[i].work_s for i in equals)
    equals = [i for i in equals if candidates[i].work_s == least_s]
    return equals[int(chance * len(equals))]
